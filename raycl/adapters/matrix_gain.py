"""A branch that several stages train in turn, merged after each by the gain that their inputs ask for.

With A fixed, z = A x, C_i = E_i z z^T over the inputs of stage i, and B_i what stage i had trained B to, the

    B = argmin sum_i E_i |(B - B_i) z|^2

is a running mean with a matrix for its weight: after each stage, from B before it, B' as trained from there, and S, the sum
of the earlier C,

    B <- B + (B' - B) C (S + C + eps I)^-1,    S <- S + C,    eps = 1e-6 tr(S + C) / r

Equal C make it the plain mean. It does not depend on the basis that A is written in, but for eps. What it does to a z that
neither stage has seen, where few tokens fill few directions (short answers in a decoder), is decided by eps alone.
Specification: raycl's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.adapters.branches import Branches
from raycl.adapters.moments import add_rows

RIDGE = 1e-6
"""eps, as a share of the mean eigenvalue."""


def merged(before: Tensor, trained: Tensor, own: Tensor, earlier: Tensor) -> Tensor:
    """B (d_out, r) after a stage, from B before it and as trained, its own C and the earlier stages' S (r, r); in fp64."""
    both = own.double() + earlier.double()
    both = both + RIDGE * both.trace() / len(both) * torch.eye(len(both), dtype=both.dtype, device=both.device)
    step = (trained - before).double() @ own.double()
    return before.double() + torch.linalg.solve(both, step, left=False)


class DownOutputs:
    """Second moments of z = A x in every adapted layer, padding left out, in a data pass."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.inputs: Inputs | None = None
        """The batch at hand; the method sets it before each forward pass."""
        self._hooks: list[Any] = []

    def watch(self, moments: dict[str, Any], prefix: str) -> None:
        """Hook every layer: during the pass `moments` gains C (r, r) of each, named by `prefix` and the layer's path."""
        for path, layer in self.branches.layers.items():
            self._hooks.append(layer.on_down(self._hook(path, prefix + path, moments)))

    def release(self) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, path: str, name: str, moments: dict[str, Any]) -> Callable[[Tensor], None]:
        region = self.branches.backbone.region(path)

        def observe(z: Tensor) -> None:
            if self.inputs is None:
                raise RuntimeError("a data pass must condition the method before each forward pass")
            add_rows(moments, name, z[self.inputs.real(z, region)])

        return observe
