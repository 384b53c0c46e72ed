"""Data passes: every example once, answers in, padding out."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.moments import SecondMoment, mean_name
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_params
from raycl.state.stage_state import StageState
from raycl.train.batches import Encoder
from raycl.train.module import StageModule
from raycl.train.passes import DataPass
from raycl.train.workers import Workers

INF = {"name": "inf_lora", "rank": 2, "alpha": 4}
ALONE = Workers()
GAIN = {"name": "gain_lora", "rank": 2, "alpha": 4, "gate_hidden": [8]}


def passed(tiny, params, examples, batch_size, when="before", workers=ALONE, state=None) -> tuple[Method, dict, list]:
    """The moments of one pass, and what the progress callback heard."""
    method = build(method_params(params["name"]).model_validate(params), StageInfo(1, 1, "toy1", 0))
    method.install(tiny.backbone, state or StageState())
    heard: list[tuple[int, int]] = []
    try:
        moments = method.collect(when)
        encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
        module = StageModule(tiny.backbone, method)
        rows = encoder.encode(examples)
        DataPass(module, encoder, batch_size, workers).run(rows, moments, lambda *counts: heard.append(counts))
        if hasattr(method, "inputs"):
            method.inputs.release()
    finally:
        method.remove()
    return method, moments, heard


def test_first_layer_moment_by_hand(tiny, family, toy_task):
    """The first layer's moment is that of the normalised embeddings of all real input tokens, answers included."""
    examples = toy_task(1, distinct=5, repeats=1, spread=3).train
    _, moments, _ = passed(tiny, INF, examples, 2)
    model, tokenizer = tiny.backbone.model, tiny.tokenizer
    rows = []
    for example in examples:
        ids = tokenizer(example.prompt).input_ids
        if family == "llama":
            ids = [*ids, *tokenizer(example.answers[0], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append(model.get_input_embeddings()(torch.tensor(ids)))
    first = model.model.layers[0].input_layernorm if family == "llama" else model.encoder.block[0].layer[0].layer_norm
    x = first(torch.cat(rows)).double()
    path = "model.layers.0.self_attn.q_proj" if family == "llama" else "encoder.block.0.layer.0.SelfAttention.q"
    assert moments[path].count.item() == len(x)
    assert (moments[path].value - x.T @ x / len(x)).abs().max() <= 1e-5


def test_gate_moments_by_hand(tiny, family, toy_task):
    """p_0's moment is that of the mean prompt embedding (for a decoder-only model at RMS 1), one row per example, whatever
    the batches; before training there are moment and mean of the last level."""
    examples = toy_task(1, distinct=5, repeats=1, spread=3).train
    embed = tiny.backbone.model.get_input_embeddings()
    p0 = torch.stack([embed(torch.tensor(tiny.tokenizer(e.prompt).input_ids)).mean(dim=0) for e in examples]).double()
    p0 = p0 if family == "t5" else p0 / p0.square().mean(dim=1, keepdim=True).sqrt()
    for batch_size in (1, 2, 5):
        _, moments, _ = passed(tiny, GAIN, examples, batch_size, "after")
        assert moments["gate/0"].count.item() == 5
        assert (moments["gate/0"].value - p0.T @ p0 / 5).abs().max() <= 1e-5 * p0.square().mean()
    method, moments, _ = passed(tiny, GAIN, examples, 2)
    assert moments.keys() == {"gate/2", mean_name("gate/2")}
    last = method.gate.features(p0.float())[-1].detach().double()
    assert (moments[mean_name("gate/2")].value - last.mean(dim=0)).abs().max() <= 1e-5 * last.abs().max()


def test_batch_size_and_padding_do_not_enter(tiny, toy_task):
    """Passes with batches of one and of five give the same moments in every layer."""
    examples = toy_task(1, distinct=5, repeats=1, spread=3).train
    _, small, _ = passed(tiny, INF, examples, 1)
    _, large, heard = passed(tiny, INF, examples, 5)
    assert small.keys() == large.keys()
    for name, moment in small.items():
        assert moment.count == large[name].count
        assert (moment.value - large[name].value).abs().max() <= 1e-5 * moment.value.abs().max()
    assert heard == [(5, 5)]


def test_workers_share_the_examples_out(tiny, toy_task):
    """The shares of two workers add up to the whole; a worker without examples adds nothing."""

    class Silent(Workers):
        """One of several workers whose sums are made by the test."""

        def sum(self, tensors):
            """Nothing to exchange."""

    examples = toy_task(1, distinct=5, repeats=1, spread=3).train
    _, whole, _ = passed(tiny, INF, examples, 2)
    _, left, _ = passed(tiny, INF, examples, 2, workers=Silent(0, 2))
    _, right, _ = passed(tiny, INF, examples, 2, workers=Silent(1, 2))
    for name, moment in whole.items():
        both = type(moment)(48)
        both.total, both.count = left[name].total + right[name].total, left[name].count + right[name].count
        assert both.count == moment.count
        assert (both.value - moment.value).abs().max() <= 1e-5 * moment.value.abs().max()
    _, idle, _ = passed(tiny, INF, examples[:1], 2, workers=Silent(1, 2))
    assert idle.keys() == whole.keys()
    assert all(not moment.total.any() and moment.count == 0 for moment in idle.values())


def test_every_worker_ends_with_the_sums_of_all(tiny, toy_task):
    """Totals and counts are both summed, each once: with a partner that saw the same, both are doubled."""

    class Twins(Workers):
        """One of two workers that see the same."""

        def sum(self, tensors):
            """What the other one adds is what this one has."""
            for tensor in tensors:
                tensor.mul_(2)

    examples = toy_task(1, distinct=5, repeats=1, spread=3).train
    _, alone, _ = passed(tiny, INF, examples[::2], 2)
    _, both, _ = passed(tiny, INF, examples, 2, workers=Twins(0, 2))
    for name, moment in alone.items():
        assert torch.equal(both[name].count, 2 * moment.count)
        assert torch.equal(both[name].total, 2 * moment.total)


def test_a_pass_has_neither_gradients_nor_dropout(tiny, toy_task, run_stage):
    """Passes run in eval mode: with a trained branch under heavy dropout, two of them agree bit for bit."""
    task = toy_task(1, distinct=5, repeats=1, spread=3)
    heavy = INF | {"dropout": 0.5}
    state = run_stage(tiny, heavy, [task]).state
    _, first, _ = passed(tiny, heavy, task.train, 2, state=state)
    _, second, _ = passed(tiny, heavy, task.train, 2, state=state)
    _, bare, _ = passed(tiny, heavy, task.train, 2)
    assert all(torch.equal(first[name].value, second[name].value) for name in first)
    assert any(not torch.equal(first[name].value, bare[name].value) for name in first)
    assert all(not moment.total.requires_grad for moment in first.values())


def test_a_gate_pass_does_not_run_the_backbone(tiny, toy_task):
    """GainLoRA over O-LoRA needs only embeddings: no layer of the backbone runs."""
    runs = []
    handle = tiny.backbone.model.register_forward_pre_hook(lambda module, args: runs.append(1))
    try:
        examples = toy_task(1).train
        passed(tiny, GAIN, examples, 4, "after")
        assert runs == []
        passed(tiny, GAIN | {"over": "inf_lora"}, examples, 4, "after")
        assert len(runs) == len(examples) / 4
    finally:
        handle.remove()


def test_an_empty_pass_cannot_be_read():
    """Moments nobody filled refuse to give a value."""
    with pytest.raises(ValueError, match="no rows"):
        _ = SecondMoment(3).value
