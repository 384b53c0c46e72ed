"""A linear map that may move only in the orthogonal complement of a subspace, by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycl.adapters.subspace import complement


class ConstrainedLinear(nn.Module):
    """W = W0 + V N^T, no bias; N (d_in, d_in - m) spans the complement of M (d_in, m), V (d_out, d_in - m) trains from 0.

    For any x in span(M), W x = W0 x at every step under every optimizer and every sharding, since N^T x = 0. Projecting
    gradients instead does not keep this under Adam, which rescales each coordinate. Held in fp32; autocast is off inside.
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

    def value(self) -> Tensor:
        """The effective W, (d_out, d_in), fp32."""
        return self.start + self.move @ self.free.T

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, d_in) fp32 -> (B, d_out)."""
        return x @ self.start.T + (x @ self.free) @ self.move.T
