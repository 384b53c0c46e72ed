"""Weights of its own for every row of a batch: copies of the current branch, trained a little further and thrown away.

y_b = W x_b + s B_b A_b x_b,    (A_b, B_b) near the branch's own (A, B) for row b

The branch is never written. Any batch may go through the weights of one row, which is how they are trained; through those of
several rows goes a batch of as many, in two batched products a layer, of (B, S, d_in) with (B, d_in, r) and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from raycl.adapters.branches import Branches
from raycl.adapters.stacked_lora import CURRENT

Weights = list[Tensor]
"""A (r, d_in) and B (d_out, r) of the first layer, then of the second, and so on; fp32."""


class LocalWeights:
    """What acts in the place of a backbone's current branch, from here on; there are no frozen branches beside it."""

    def __init__(self, branches: Branches) -> None:
        self._layers = list(branches.layers.values())
        self._acting: list[Tensor] = []
        """A (n, r, d_in) and B (n, d_out, r) of each layer, n = 1 for all rows alike."""
        branches.update_by({path: partial(self._update, index) for index, path in enumerate(branches.layers)})

    @property
    def trained(self) -> Weights:
        """The branch's own weights, where every row starts from."""
        return [weight.detach() for layer in self._layers for weight in (layer.down, layer.up)]

    def act(self, rows: Sequence[Weights]) -> None:
        """Let these weights act: those of one row on any batch, those of several on the rows of a batch of as many."""
        self._acting = [torch.stack(found) for found in zip(*rows, strict=True)]

    def _update(self, index: int, x: Tensor) -> Tensor:
        """s B_b A_b x_b of the layer at a place: (B, S, d_in) -> (B, S, d_out).

        Raises ValueError for a layer whose input has no axis of examples, RuntimeError for a batch of other rows.
        """
        if x.dim() < 3:
            raise ValueError(
                f"method.targets: a module of {x.shape[-1]} inputs reads the tokens of all examples in one row, so that no "
                "example can have weights of its own; adapt other modules"
            )
        if not self._acting or len(self._acting[0]) not in (1, len(x)):
            raise RuntimeError("a model that adapts to its inputs must be conditioned on them before a forward pass")
        down, up = self._acting[2 * index : 2 * index + 2]
        return x @ down.mT * self._layers[index].scaling[CURRENT] @ up.mT


def descend(start: Weights, loss: Callable[[Weights], Tensor], steps: int, rate: float, pull: float) -> Weights:
    """`steps` gradient steps of length `rate` down  loss(W) + pull ||W - start||^2,  from `start`.

    `loss` is given weights that have gradients, also where gradients are off; `start` is left as it is.
    """
    current = start
    with torch.enable_grad():
        for _ in range(steps):
            leaves = [weight.detach().requires_grad_() for weight in current]
            found = torch.autograd.grad(loss(leaves), leaves, allow_unused=True, materialize_grads=True)
            pairs = zip(leaves, found, start, strict=True)
            current = [
                leaf.detach() - rate * (slope + 2 * pull * (leaf.detach() - first)) for leaf, slope, first in pairs
            ]
    return current
