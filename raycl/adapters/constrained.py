"""A linear map that may move only in the orthogonal complement of a subspace, by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycl.adapters.subspace import complement


class ConstrainedLinear(nn.Module):
    """W = W0 + V N^T, no bias; N (d_in, d_in - m) spans the complement of M (d_in, m), V (d_out, d_in - m) trains from 0.

    For any x in span(M), W x = W0 x at every step under every optimizer and every sharding, since N^T x = 0. Projecting
    gradients instead does not keep this under Adam, which rescales each coordinate. Everything is fp32.
    """

    def __init__(self, start: Tensor, basis: Tensor) -> None:
        super().__init__()
        free = complement(basis)
        self.start = nn.Parameter(start.float(), requires_grad=False)
        self.free = nn.Parameter(free.float(), requires_grad=False)
        self.move = nn.Parameter(torch.zeros(start.shape[0], free.shape[1]))

    def reset(self, start: Tensor) -> None:
        """Replace W0, shape (d_out, d_in)."""
        self.start.data.copy_(start.to(self.start))

    def forward(self, x: Tensor | None = None) -> Tensor:
        """x (B, d_in) fp32 -> (B, d_out); without x, the effective W (d_out, d_in).

        Called even for the bare weight: ZeRO-3 gathers a module's parameters when the module is called.
        """
        if x is None:
            return self.start + self.move @ self.free.T
        return x @ self.start.T + (x @ self.free) @ self.move.T


class FixedLinear(nn.Module):
    """W that does not move: a gate of an earlier task, or one whose complement is empty."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.start = nn.Parameter(start.float(), requires_grad=False)

    reset = ConstrainedLinear.reset

    def forward(self, x: Tensor | None = None) -> Tensor:
        """x (B, d_in) fp32 -> (B, d_out); without x, W (d_out, d_in)."""
        return self.start if x is None else x @ self.start.T


def constrained(start: Tensor, basis: Tensor) -> ConstrainedLinear | FixedLinear:
    """The linear map from W0 = `start` (d_out, d_in) that keeps W x for x in span(`basis`) (d_in, m); fixed if m = d_in."""
    return FixedLinear(start) if basis.shape[1] >= start.shape[1] else ConstrainedLinear(start, basis)
