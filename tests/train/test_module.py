"""The stage module's loss against transformers' own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from raycl.adapters.backbone import Inputs
from raycl.adapters.predicting import precision
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_params
from raycl.state.stage_state import StageState
from raycl.train.batches import Encoded, Encoder
from raycl.train.module import StageModule

PARAMS = method_params("sin_lora").model_validate({"name": "sin_lora", "rank": 2, "alpha": 4})


@pytest.fixture
def module(tiny):
    """A stage module with one inert branch."""
    method: Method = build(PARAMS, StageInfo(1, 1, "toy1", 0))
    method.install(tiny.backbone, StageState())
    yield StageModule(tiny.backbone, method)
    method.remove()


def batch(tiny, toy_task) -> tuple[Inputs, int]:
    """A batch of uneven rows and its number of answer tokens."""
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    rows = encoder.encode(toy_task(1, distinct=6, repeats=1, spread=3).train)
    return encoder.collate(rows, "cpu"), sum(len(row.answer) for row in rows)


def test_loss_is_the_token_mean_of_transformers(tiny, module, toy_task):
    """The summed loss over the number of answer tokens is the loss transformers computes from the same labels."""
    inputs, tokens = batch(tiny, toy_task)
    assert len({int(n) for n in inputs.mask.sum(dim=1)}) > 1
    extra = {}
    if not tiny.backbone.encoder_decoder:
        extra["position_ids"] = (inputs.mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = tiny.backbone.model(
            input_ids=inputs.ids, attention_mask=inputs.mask, labels=inputs.labels, **extra
        ).loss
        ours = module(inputs)[0] / tokens
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_loss_of_a_batch_is_the_sum_over_its_rows(tiny, module, toy_task):
    """Padding and neighbours do not enter: alone, the rows' losses add up to the batch's."""
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    rows = encoder.encode(toy_task(1, distinct=6, repeats=1, spread=3).train)
    with torch.no_grad():
        together = module(encoder.collate(rows, "cpu"))[0]
        alone = sum(module(encoder.collate([row], "cpu"))[0] for row in rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_row_without_answer_adds_nothing(tiny, module, toy_task):
    """A filler row among others, and a batch of nothing else, weigh 0 and have finite gradients."""
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    rows = encoder.encode(toy_task(1, distinct=2, repeats=1).train)
    filler = Encoded(rows[0].prompt, ())
    with torch.no_grad():
        plain = module(encoder.collate(rows, "cpu"))[0]
        filled = module(encoder.collate([*rows, filler], "cpu"))[0]
    assert filled.item() == pytest.approx(plain.item(), rel=1e-5)
    empty = module(encoder.collate([filler, filler], "cpu"))[0]
    empty.backward()
    assert empty.item() == 0
    grads = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
    assert all(not grad.any() for grad in grads)


def test_precision_follows_the_base_weights(tiny, tiny_bf16):
    """fp32 base weights run without autocast, bf16 ones under it."""
    assert isinstance(precision(tiny.backbone), nullcontext)
    with precision(tiny_bf16.backbone):
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_bf16_loss_is_close_to_fp32(tiny, tiny_bf16, toy_task):
    """With base weights in bf16 the loss stays within 3 % and is returned in fp32."""
    inputs, tokens = batch(tiny, toy_task)
    losses = []
    for model in (tiny, tiny_bf16):
        method = build(PARAMS, StageInfo(1, 1, "toy1", 0))
        method.install(model.backbone, StageState())
        try:
            with torch.no_grad(), precision(model.backbone):
                loss, *_ = StageModule(model.backbone, method)(inputs)
        finally:
            method.remove()
        assert loss.dtype == torch.float32
        losses.append(loss.item() / tokens)
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and losses[1] != losses[0]


def test_what_a_decoder_reads_are_its_labels_one_later(tiny, module, toy_task, family):
    """The loss of an encoder-decoder is the same as with the shift of its own that transformers makes; a row without labels
    reads padding after its first token."""
    from raycl.adapters.predicting import shifted

    labels = torch.tensor([[5, 6, 2], [7, 2, -100], [-100, -100, -100]])
    start = type("Start", (), {"decoder_start_token_id": 3, "pad_token_id": 0})
    model = type("Model", (), {"config": start, "generation_config": start})
    assert shifted(model, labels).tolist() == [[3, 5, 6], [3, 7, 2], [3, 0, 0]]
    assert labels[0].tolist() == [5, 6, 2]
    start.pad_token_id, start.decoder_start_token_id = None, None
    model.generation_config = type("Generation", (), {"decoder_start_token_id": 4})
    assert shifted(model, labels).tolist() == [[4, 5, 6], [4, 7, 2], [4, 4, 4]]
    if family == "t5":
        inputs, _ = batch(tiny, toy_task)
        with torch.no_grad():
            fed = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
            theirs = tiny.backbone.model(**fed, labels=inputs.labels, use_cache=False).logits
            assert torch.equal(module.predict(inputs)[0], theirs)
