"""A batch whose rows are shown their own answers first, and answers drawn from a model token by token; token ids alone.

A row's own answer is what `labels` hold. Another answer stands in its places, one token for each of its own, so that no row
gets longer or shorter and padding stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Inputs


def labelled(inputs: Inputs) -> Tensor:
    """The labels of a batch. Raises ValueError where it has none."""
    if inputs.labels is None:
        raise ValueError("a batch without answers has none to show and no places for others")
    return inputs.labels


def at_answers(logits: Tensor, marked: Tensor) -> Tensor:
    """The logits (n, V) that predict n marked answer tokens, in the order of the rows.

    `marked` is bool in the shape of the batch's labels; `logits` (B, L, V) stand for its last L columns, as those of a
    decoder-only model do, or for all.
    """
    return logits[marked[:, marked.shape[1] - logits.shape[1] :]]


def with_answers(inputs: Inputs, labels: Tensor, encoder_decoder: bool) -> Inputs:
    """The batch with other answers; `labels` are IGNORE where the batch's own are."""
    ids = inputs.ids if encoder_decoder else torch.where(labels == IGNORE, inputs.ids, labels)
    return replace(inputs, ids=ids, labels=labels)


def shown(inputs: Inputs, answers: Inputs, encoder_decoder: bool) -> Inputs:
    """The rows of `answers`, each after a demonstration: its own prompt and answer, which `inputs` hold.

    Decoder-only: prompt, own answer, prompt, answer, with labels on the last part alone, padded on the left.
    Encoder-decoder: the encoder reads prompt, own answer, prompt, padded on the right; the decoder's side is unchanged.
    """
    labels = labelled(inputs)
    if encoder_decoder:
        own = labels != IGNORE
        ids, mask, order = _joined(
            (inputs.ids, labels.clamp(min=0), inputs.ids), (inputs.mask, own, inputs.mask), False
        )
        return replace(answers, ids=ids, mask=mask, prompt_mask=mask, body_mask=None)
    ids, mask, order = _joined((inputs.ids, answers.ids), (inputs.mask, answers.mask), True)
    prompt = torch.cat((inputs.mask, answers.prompt_mask), dim=1).gather(1, order)
    wanted = torch.cat((torch.full_like(labels, IGNORE), labelled(answers)), dim=1).gather(1, order)
    return Inputs(ids, mask, prompt, wanted, answers.stages, answers.weights)


def _joined(ids: Sequence[Tensor], masks: Sequence[Tensor], left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of rows as one piece, with all padding on one side and none in all rows: ids, mask, and whence each column."""
    joined, real = torch.cat(list(ids), dim=1), torch.cat([mask.bool() for mask in masks], dim=1)
    order = (real if left else ~real).int().argsort(dim=1, stable=True)
    width = int(real.sum(dim=1).max())
    order = order[:, -width:] if left else order[:, :width]
    return joined.gather(1, order), real.gather(1, order).to(masks[0].dtype), order


@torch.no_grad()
def drawn(
    inputs: Inputs, run: Callable[[Inputs], Tensor], chances: Tensor, encoder_decoder: bool
) -> tuple[Inputs, Tensor]:
    """The batch with answers from the model in `run` (inputs -> logits), at temperature 1, and which tokens of them count.

    `chances` (B, n), in [0, 1), draw the first n tokens of each row (`draw`), by n passes, whatever the rows are. An answer
    ends where its row's last label, the end token, is drawn, and at the latest where the row's own answer ends: tokens
    after that, and after the first n, are not marked in the mask, which has the shape of the labels.
    """
    labels = labelled(inputs)
    own = labels != IGNORE
    place = own.cumsum(dim=1) * own
    """1, 2, ... on the tokens of each answer, 0 elsewhere."""
    end = labels.gather(1, place.argmax(dim=1, keepdim=True))
    labels = labels.clone()
    for step, chance in enumerate(chances.unbind(dim=1), start=1):
        logits = run(with_answers(inputs, labels, encoder_decoder))
        here = place == step
        labels[here] = draw(at_answers(logits, here), chance[here.any(dim=1)])
    ended = ((labels == end) & own).int()
    open_still = ended.cumsum(dim=1) == ended
    return with_answers(inputs, labels, encoder_decoder), own & open_still & (place <= chances.shape[1])


def draw(logits: Tensor, chances: Tensor) -> Tensor:
    """Tokens (n,) from softmax(logits (n, V)): the first t with P(token <= t) above its one of `chances` (n,)."""
    reached = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(reached, chances[:, None] * reached[:, -1:], right=True).squeeze(1)
