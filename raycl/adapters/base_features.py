"""One vector per input from the bare base model: the mean of its token embeddings, or of its hidden states after a layer.

    h = (1/n) sum over the n tokens of the region of e(token)         no forward pass
    h = (1/n) sum over the n tokens of the region of z_l(token)       a forward pass that ends after layer l

Pooled in fp64, row by row, so that neither padding nor the other rows of a batch take part in it. The model must be in
eval mode and carry no branch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.predicting import positions, precision


def mean_embedding(backbone: Backbone, inputs: Inputs, mask: Tensor) -> Tensor:
    """h (B, d), fp64, over the tokens where mask (B, S) is 1."""
    return pooled(backbone.embed(inputs.ids), mask)


def mean_hidden(backbone: Backbone, inputs: Inputs, mask: Tensor, layer: int | None) -> Tensor:
    """h (B, d), fp64, after layer `layer` (from 1; none = a third of the depth) of the decoder, or of the encoder where
    there is one. Raises ValueError where the model has no such layer."""
    layers = layers_of(backbone)
    return pooled(_states_after(backbone, inputs, layers[_place(layers, layer) - 1]), mask)


def layer_path(backbone: Backbone, layer: int | None) -> str:
    """Where in the model the layer stands that `mean_hidden` pools. Raises ValueError as it does."""
    layers = layers_of(backbone)
    wanted = layers[_place(layers, layer) - 1]
    return next(path for path, module in backbone.model.named_modules() if module is wanted)


def _place(layers: nn.ModuleList, layer: int | None) -> int:
    """Which of the layers is meant, from 1."""
    wanted = layer or max(1, len(layers) // 3)
    if wanted > len(layers):
        raise ValueError(
            f"method.layer: {wanted}; the model has {len(layers)} layers. Allowed: 1 to {len(layers)}, or none for a third "
            "of them."
        )
    return wanted


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states (B, S, d) over the tokens where mask (B, S) is 1: (B, d), fp64."""
    rows = zip(states, mask.bool(), strict=True)
    return torch.stack([row[keep].double().mean(dim=0) for row, keep in rows])


def layers_of(backbone: Backbone) -> nn.ModuleList:
    """The layers that read the source's tokens, first to last: the outermost list of modules of the model or its encoder.

    Raises ValueError for a model that keeps its layers otherwise.
    """
    reader = _reader(backbone)
    lists = [(name.count("."), name) for name, module in reader.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(
            "method.features: hidden; no list of layers was found in this model. Use method.features=embeddings."
        )
    found = reader.get_submodule(min(lists, key=lambda place: place[0])[1])
    assert isinstance(found, nn.ModuleList)
    return found


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the wanted layer was reached")
        self.states = states


def _states_after(backbone: Backbone, inputs: Inputs, layer: nn.Module) -> Tensor:
    """What a layer gives out (B, S, d), in a pass that runs no later layer."""

    def end(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    fed: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
    if not backbone.encoder_decoder:
        fed |= {"position_ids": positions(inputs.mask), "use_cache": False}
    hook = layer.register_forward_hook(end)
    try:
        with precision(backbone):
            _reader(backbone)(**fed)
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise RuntimeError("a forward pass did not come through the layer whose states were wanted")


def _reader(backbone: Backbone) -> nn.Module:
    """The part of the model that reads the source's tokens."""
    return backbone.model.get_encoder() if backbone.encoder_decoder else backbone.model
