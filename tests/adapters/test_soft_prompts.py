"""Soft prompts: where the vectors stand, what they mask and label, and that padding stays outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.soft_prompts import SoftPrompt, soften, vocabulary_vectors
from raycl.train.batches import Encoder
from raycl.train.module import feed

PAD = 0
SOFT = torch.tensor([[[-1.0], [-2.0]]])
"""Two vectors, d = 1."""


def backbone(encoder_decoder: bool = False) -> Backbone:
    """A model whose embedding of token i is the number i."""
    table = nn.Embedding(20, 1)
    table.weight = nn.Parameter(torch.arange(20.0)[:, None], requires_grad=False)
    model = nn.Module()
    model.get_input_embeddings = lambda: table
    return Backbone(model, (), encoder_decoder, 1)


def inputs(ids: list[list[int]], prompts: list[list[int]], labels: list[list[int]] | None = None) -> Inputs:
    """A batch: 0 is padding, `prompts` marks the prompt's tokens."""
    tokens = torch.tensor(ids)
    marks = torch.tensor(prompts)
    return Inputs(tokens, (tokens != PAD).long(), marks, None if labels is None else torch.tensor(labels))


LEFT = inputs(
    [[0, 0, 5, 6, 9], [5, 6, 7, 8, 9]],
    [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]],
    [[-100, -100, -100, -100, 9], [-100, -100, -100, 8, 9]],
)
"""Decoder-only rows, padded on the left: prompt 5 6, answer 9; prompt 5 6 7, answer 8 9."""
RIGHT = inputs(
    [[5, 6, 9, 0, 0], [5, 6, 7, 8, 9]],
    [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
    [[-100, -100, 9, -100, -100], [-100, -100, -100, 8, 9]],
)
"""The same, padded on the right."""


@pytest.mark.parametrize(
    ("batch", "place", "embeds", "labels"),
    [
        (LEFT, "front", [[0, 0, -1, -2, 5, 6, 9], [-1, -2, 5, 6, 7, 8, 9]], [[6], [5, 6]]),
        (LEFT, "end", [[0, 0, 5, 6, -1, -2, 9], [5, 6, 7, -1, -2, 8, 9]], [[6], [5, 6]]),
        (RIGHT, "front", [[-1, -2, 5, 6, 9, 0, 0], [-1, -2, 5, 6, 7, 8, 9]], [[4], [5, 6]]),
        (RIGHT, "end", [[5, 6, -1, -2, 9, 0, 0], [5, 6, 7, -1, -2, 8, 9]], [[4], [5, 6]]),
    ],
)
def test_placement_in_a_decoder_only_batch(batch, place, embeds, labels):
    """Front: between padding and the prompt's first token; end: between its last token and the answer."""
    soft = soften(backbone(), batch, SoftPrompt(SOFT, place))
    assert soft.embeds[..., 0].tolist() == embeds
    assert soft.mask.tolist() == [[int(value != 0) for value in row] for row in embeds]
    for row, expected in zip(soft.labels, labels, strict=True):
        assert (row != -100).nonzero().flatten().tolist() == expected
        assert row[expected].tolist() == [8, 9][-len(expected) :]


@pytest.mark.parametrize(
    ("place", "embeds"),
    [("front", [[-1, -2, 5, 6, 0], [-1, -2, 5, 6, 7]]), ("end", [[5, 6, -1, -2, 0], [5, 6, 7, -1, -2]])],
)
def test_placement_in_an_encoder(place, embeds):
    """Encoder inputs are padded on the right; the decoder's labels stay as they are."""
    batch = inputs([[5, 6, 0], [5, 6, 7]], [[1, 1, 0], [1, 1, 1]], [[8, 9], [9, -100]])
    soft = soften(backbone(True), batch, SoftPrompt(SOFT, place))
    assert soft.embeds[..., 0].tolist() == embeds
    assert soft.labels is batch.labels


def test_each_row_may_have_its_own_vectors():
    """Vectors (B, P, d) go to their rows, and without labels there are none."""
    vectors = torch.tensor([[[-1.0]], [[-2.0]]])
    batch = inputs([[0, 5], [5, 6]], [[0, 1], [1, 1]])
    soft = soften(backbone(), batch, SoftPrompt(vectors))
    assert soft.embeds[..., 0].tolist() == [[0, -1, 5], [-2, 5, 6]]
    assert soft.labels is None


@pytest.mark.parametrize("place", ["front", "end"])
def test_gradients_reach_the_vectors(place):
    """Each vector's gradient is the sum over the rows it stands in; the embedding table has none."""
    vectors = SOFT.clone().requires_grad_()
    soft = soften(backbone(), LEFT, SoftPrompt(vectors, place))
    (soft.embeds * torch.tensor([1.0, 10.0])[:, None, None]).sum().backward()
    assert vectors.grad.flatten().tolist() == [11.0, 11.0]


def test_vectors_take_the_dtype_of_the_embeddings():
    """fp32 vectors stand among bf16 embeddings as bf16, and their own gradient stays fp32."""
    model = backbone()
    model.model.get_input_embeddings().bfloat16()
    vectors = SOFT.clone().requires_grad_()
    soft = soften(model, LEFT, SoftPrompt(vectors))
    assert soft.embeds.dtype == torch.bfloat16
    soft.embeds.sum().backward()
    assert vectors.grad.dtype == torch.float32


def test_vocabulary_vectors_are_rows_of_the_table():
    """fp32 copies of embeddings, among the first `first` only, the same for the same generator."""
    draws = [vocabulary_vectors(backbone(), 50, torch.Generator().manual_seed(3), first=4) for _ in range(2)]
    assert torch.equal(*draws) and draws[0].shape == (50, 1) and draws[0].dtype == torch.float32
    assert set(draws[0].flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert vocabulary_vectors(backbone(), 200, torch.Generator().manual_seed(3)).max() == 19


class Prompted:
    """As much of a method as generation needs: one soft prompt for all rows."""

    def __init__(self, vectors: torch.Tensor, place: str) -> None:
        self.soft = SoftPrompt(vectors, place)

    def soft_prompt(self) -> SoftPrompt:
        """Always the same."""
        return self.soft


@pytest.mark.parametrize("place", ["front", "end"])
def test_generation_goes_on_where_training_predicts(tiny, toy_task, place):
    """Greedy generation with a soft prompt, in a padded batch, is what step-by-step forward passes of one row give."""
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    rows = encoder.encode(toy_task(1, distinct=3, repeats=1, spread=3).train)
    method = Prompted(torch.randn(1, 4, tiny.backbone.width), place)
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2, "num_beams": 1, "max_new_tokens": 5}
    together = encoder.collate(rows, "cpu", answers=False)
    out = tiny.backbone.model.eval().generate(**feed(tiny.backbone, method, together)[0], **settings)
    for index, row in enumerate(rows):
        fed, _, _ = feed(tiny.backbone, method, encoder.collate([row], "cpu", answers=False))
        expected = one_by_one(tiny, fed["inputs_embeds"], 5)
        given = out[index].tolist()[1 if tiny.backbone.encoder_decoder else 0 :]
        assert given[: len(expected)] == expected and not any(given[len(expected) :])


@torch.no_grad()
def one_by_one(tiny, embeds: torch.Tensor, steps: int) -> list[int]:
    """The likeliest continuation, a whole forward pass per token."""
    model, tokens = tiny.backbone.model, []
    while len(tokens) < steps and 2 not in tokens:
        if tiny.backbone.encoder_decoder:
            logits = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([[0, *tokens]])).logits
        else:
            new = model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
            logits = model(inputs_embeds=torch.cat([embeds, new], dim=1)).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens
