"""Siblings packed: the branches of several stages that train at once over one backbone and one frozen stack.

The rows of a pass are those of the first sibling, then those of the second, and so on, as many of each. A linear module
computes W x and the frozen branches once for all of them, and to each sibling's rows adds that sibling's own branch; with
plain branches of one rank that is one batched product of (n, rows, d_in) with (n, d_in, r), and one back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import lift, seat, seated
from raycl.adapters.stacked_lora import CURRENT, StackedLora


class CannotPack(Exception):
    """Why these siblings cannot train at once; the message is for people."""


class PackedLora(nn.Module):
    """The layers of several siblings on one linear module, as one layer over the rows of all of them."""

    def __init__(self, layers: Sequence[StackedLora]) -> None:
        """The siblings' `layers` share their base layer; from here on they share the first one's frozen stack too.

        Raises CannotPack where they do not add up to one: other frozen branches, or branches that only some of them weigh.
        """
        super().__init__()
        # No submodules: what trains, and in which mode, is each sibling's own matter.
        self._layers = tuple(layers)
        first = self._layers[0]
        for layer in self._layers[1:]:
            _share(first, layer)
        shapes = {(layer.down.shape, layer.scaling[CURRENT]) for layer in self._layers}
        self._plain = len(shapes) == 1 and all(_plain(layer) for layer in self._layers)
        """Whether all that is added is plain branches of one rank and scale, that nobody watches."""

    @property
    def weight(self) -> Tensor:
        """W, which some models ask for its dtype."""
        return self._layers[0].weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x: (n B, S, d_in), or with further axes of tokens -> (n B, S, d_out).

        Raises CannotPack for the rows (N, d_in) of all tokens in one: whose they are is not said.
        """
        if x.dim() < 3:
            raise CannotPack(f"a module of {x.shape[-1]} inputs reads the tokens of all examples in one row")
        if x.dim() > 3:
            return self(x.flatten(1, -2), *args, **kwargs).unflatten(1, x.shape[1:-1])
        out = self._layers[0].base(x, *args, **kwargs)
        if self._plain:
            return out + self._batched(x).to(out.dtype)
        count = len(self._layers)
        shares = zip(self._layers, out.chunk(count), x.chunk(count), strict=True)
        return torch.cat([layer.add(mine, rows) for layer, mine, rows in shares])

    def _batched(self, x: Tensor) -> Tensor:
        """s B_i A_i x for the rows of each sibling i, and the frozen branches' sum where it is not in the base."""
        first, count = self._layers[0], len(self._layers)
        down = torch.stack([layer.down for layer in self._layers])
        up = torch.stack([layer.up for layer in self._layers])
        rows = x.reshape(count, -1, x.shape[-1])
        own = torch.bmm(torch.bmm(rows, down.mT) * first.scaling[CURRENT], up.mT).view(*x.shape[:-1], -1)
        if first.frozen_a is None or first.folds:
            return own
        return own + nn.functional.linear(nn.functional.linear(x, first.frozen_a), first.frozen_b)


def _plain(layer: StackedLora) -> bool:
    """Whether a layer adds a branch as PEFT made it, unweighed and unheard."""
    parts = (layer.lora_A[CURRENT], layer.lora_B[CURRENT])
    as_made = all(type(part) is nn.Linear and not part._forward_hooks for part in parts)
    return as_made and layer.mixer is None and layer.update is None and not layer.detach_old


def _share(first: StackedLora, other: StackedLora) -> None:
    """Give `other` the frozen stack of `first`, which is equal. Raises CannotPack where it is not."""
    ways = [(layer.mixer is None, layer.update is None, layer.frozen_ranks) for layer in (first, other)]
    if ways[0] != ways[1]:
        raise CannotPack("the siblings do not weigh the same branches")
    if first.frozen_a is None or other.frozen_a is None:
        return
    if not (torch.equal(first.frozen_a, other.frozen_a) and torch.equal(first.frozen_b, other.frozen_b)):
        raise CannotPack("the siblings' frozen branches differ")
    other.frozen_a, other.frozen_b, other.folded = first.frozen_a, first.frozen_b, None


class Seats:
    """Whose layers stand on a backbone: one sibling's, all siblings' packed, or nobody's."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._bare = _hooks(backbone.model)
        self._stacks: list[dict[str, StackedLora]] = []
        self._packed: dict[str, PackedLora] = {}

    def take(self) -> None:
        """Lift the layers of the sibling that was installed just now, and keep them.

        Raises CannotPack if it put more on the backbone than layers, or adapts other modules than the first one.
        """
        layers = seated(self._backbone)
        if not layers:
            raise CannotPack("the method puts no LoRA branches on the model")
        if self._stacks and self._stacks[0].keys() != layers.keys():
            raise CannotPack("the siblings adapt different modules")
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers.values()):
            raise CannotPack("the method watches the layers while it trains")
        lift(self._backbone, layers)
        self._stacks.append(layers)
        if _hooks(self._backbone.model) != self._bare:
            raise CannotPack("the method watches the model while it trains")

    def pack(self) -> None:
        """Make the packed layers of all siblings taken. Raises CannotPack as `PackedLora` does."""
        paths = self._stacks[0]
        self._packed = {path: PackedLora([layers[path] for layers in self._stacks]) for path in paths}

    def one(self, number: int) -> None:
        """Seat the layers of one sibling, from 0."""
        seat(self._backbone, self._stacks[number])

    def all(self) -> None:
        """Seat the packed layers."""
        seat(self._backbone, self._packed)


def _hooks(model: nn.Module) -> set[tuple[str, int]]:
    """The hooks on a model's modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        (path, number) for path, module in model.named_modules() for kind in kinds for number in getattr(module, kind)
    }
