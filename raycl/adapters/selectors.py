"""Softmax attention over LoRA branches (AM-LoRA, arXiv 2409.19611): how much each branch counts, token by token.

    z_i = w_i . u_i,   u_i = s_i B_i A_i x in R^d_out;   z_0 = 0;   (g_0, ..., g_T) = softmax(z_0, ..., z_T)

w_i is the selector of branch i in this layer and z_0 belongs to a branch that is always zero; a layer may have a z_0 that
trains instead of 0. No u_i is ever built: with
h_i = A_i x, z_i = (s_i B_i^T w_i) . h_i, which lives in rank space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from raycl.adapters.stacked_lora import StackedLora


class Selectors(nn.Module):
    """Selectors w_1..w_T of all adapted layers, side by side: rows are branches, columns are the layers' outputs."""

    frozen: Tensor | None

    def __init__(self, rows: Mapping[str, Tensor], free: int, zero: Mapping[str, Tensor] | None = None) -> None:
        """`rows[path]` has shape (T, d_out) of that layer; the last `free` rows of every layer train.

        `zero[path]` (1,) is the layer's z_0, which trains if any row does; none = z_0 is 0 everywhere.
        """
        super().__init__()
        self.widths = {path: values.shape[1] for path, values in rows.items()}
        both = torch.cat(list(rows.values()), dim=1).float()
        fixed = both.shape[0] - free
        self.register_buffer("frozen", both[:fixed].clone() if fixed else None, persistent=False)
        self.free = nn.Parameter(both[fixed:].clone(), requires_grad=free > 0)
        self.zero = None if zero is None else nn.Parameter(torch.cat([zero[path] for path in rows]), free > 0)

    def rows(self) -> Tensor:
        """All rows, (T, sum of d_out), oldest first."""
        return self.free if self.frozen is None else torch.cat([self.frozen, self.free])

    def by_layer(self) -> dict[str, Tensor]:
        """The rows of each layer, (T, d_out)."""
        return dict(zip(self.widths, self.rows().split(list(self.widths.values()), dim=1), strict=True))

    def zero_by_layer(self) -> dict[str, Tensor]:
        """The z_0 of each layer, (1,); empty where z_0 is 0."""
        return {} if self.zero is None else dict(zip(self.widths, self.zero.split(1), strict=True))


def attention(
    layer: StackedLora, selectors: Tensor, old: Tensor | None, new: Tensor, zero: Tensor | None = None
) -> Tensor:
    """g_1..g_T (B, S, T) in fp32, from selectors (T, d_out), A_old x (B, S, K), s A_t x (B, S, r) and z_0 (1,), none = 0."""
    with torch.autocast(new.device.type, enabled=False):
        scores = [torch.zeros_like(new[..., :1], dtype=torch.float32)]
        if zero is not None:
            scores = [scores[0] + zero]
        if old is not None:
            directions = (layer.frozen_b.float() * layer.per_column(selectors[:-1].T)).sum(dim=0)
            # In its own precision: a product of both takes the wider one, and no copy is kept for the backward pass.
            scores.append(layer.per_branch(old * directions))
        scores.append(F.linear(new.float(), (selectors[-1] @ layer.up)[None]))
        return torch.cat(scores, dim=-1).softmax(dim=-1)[..., 1:]
