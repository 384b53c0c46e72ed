"""How strongly each branch takes part in an answer: what the layers' mixers give while the prompt is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.predicting import precision
from raycl.adapters.stacked_lora import Mixer, StackedLora
from raycl.methods.common.base import Method
from raycl.train.module import feed


@dataclass(frozen=True)
class Strengths:
    """The weights of the branches for one input, oldest first, as they multiply the branches' updates."""

    mean: tuple[float, ...]
    """Over the layers."""
    layers: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By path of the layer, over the tokens that it reads: of the prompt, or the decoder's first one."""


@torch.no_grad()
def strengths(backbone: Backbone, method: Method, inputs: Inputs) -> Strengths | None:
    """The strengths for one input, a batch of one; none where the method weighs no branches. Takes one forward pass."""
    if len(inputs.ids) != 1:
        raise ValueError(f"inputs: a batch of {len(inputs.ids)}; allowed: one input")
    method.condition(inputs)
    fed, _, _ = feed(backbone, method, inputs)
    if backbone.encoder_decoder:
        model: Any = backbone.model
        start = model.generation_config.decoder_start_token_id
        fed["decoder_input_ids"] = torch.full((1, 1), start, device=backbone.device)
    with _watched(backbone.model) as seen, precision(backbone):
        backbone.model(**fed, use_cache=False)
    layers = {path: tuple(weights.tolist()) for path, weights in seen.items()}
    if not layers:
        return None
    columns = zip(*layers.values(), strict=True)
    return Strengths(tuple(sum(column) / len(column) for column in columns), layers)


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, Tensor]]:
    """Path -> what its mixer gave last, (T,) on average over tokens, as long as the context lasts."""
    seen: dict[str, Tensor] = {}

    def noting(path: str, mixer: Mixer) -> Mixer:
        def note(layer: StackedLora, old: Tensor | None, new: Tensor) -> Tensor:
            weights = mixer(layer, old, new)
            seen[path] = weights[0].float().mean(dim=0).cpu()
            return weights

        return note

    layers = {path: module for path, module in model.named_modules() if isinstance(module, StackedLora)}
    before = {path: layer.mixer for path, layer in layers.items()}
    try:
        for path, mixer in before.items():
            layers[path].mixer = None if mixer is None else noting(path, mixer)
        yield seen
    finally:
        for path, mixer in before.items():
            layers[path].mixer = mixer
