"""Soft prompts: trained vectors that stand among the token embeddings of an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Backbone, Inputs


@dataclass(frozen=True)
class SoftPrompt:
    """Vectors for each example of a batch and where they stand."""

    vectors: Tensor
    """(B or 1, P, d)."""
    place: Literal["front", "end"] = "front"
    """Before the first token of the prompt, or right after its last one (and before the answer)."""


@dataclass(frozen=True)
class Softened:
    """A batch with its soft prompt in place: embeddings (B, P + S, d) and what goes with them."""

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None
    """Decoder-only: (B, P + S), -100 on the soft prompt; encoder-decoder: unchanged."""


def soften(backbone: Backbone, inputs: Inputs, soft: SoftPrompt) -> Softened:
    """Embed a batch and put the soft prompt into every example; padding stays outside of it."""
    embeds = backbone.embed(inputs.ids)
    batch = embeds.shape[0]
    vectors = soft.vectors.to(embeds.dtype).expand(batch, -1, -1)
    order = _order(inputs, vectors.shape[1], soft.place)
    both = torch.cat([embeds, vectors], dim=1)
    placed = both.gather(1, order[..., None].expand(-1, -1, both.shape[2]))
    ones = inputs.mask.new_ones(batch, vectors.shape[1])
    mask = torch.cat([inputs.mask, ones], dim=1).gather(1, order)
    labels = inputs.labels
    if labels is not None and not backbone.encoder_decoder:
        ignored = labels.new_full((batch, vectors.shape[1]), IGNORE)
        labels = torch.cat([labels, ignored], dim=1).gather(1, order)
    return Softened(placed, mask, labels)


def _order(inputs: Inputs, length: int, place: str) -> Tensor:
    """(B, S + P): for each new position, the index into [tokens, soft prompt] that it takes."""
    tokens = inputs.ids.shape[1]
    prompt = inputs.prompt_mask
    first = prompt.argmax(dim=1)
    last = tokens - prompt.flip(1).argmax(dim=1)
    start = (first if place == "front" else last)[:, None]
    position = torch.arange(tokens + length, device=prompt.device)[None]
    inside = (position >= start) & (position < start + length)
    return torch.where(inside, tokens + position - start, torch.where(position < start, position, position - length))


def vocabulary_vectors(backbone: Backbone, count: int, generator: torch.Generator, first: int | None = None) -> Tensor:
    """Start values of a soft prompt: `count` token embeddings drawn with replacement, (count, d), fp32 on the CPU.

    Among the first `first` tokens, which are the commoner ones in most vocabularies, or among all.
    """
    table = backbone.model.get_input_embeddings().weight.detach()
    size = min(first or table.shape[0], table.shape[0])
    rows = torch.randint(size, (count,), generator=generator)
    return table[rows.to(table.device)].to("cpu", torch.float32, copy=True)
