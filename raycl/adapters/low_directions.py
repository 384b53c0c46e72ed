"""Branches that move a weight only in its directions of small singular values, by construction.

A weight W (d_out, d_in) = U diag(S) V, with m = min(d_in, d_out) singular values, largest first, is split into its k leading
directions U_h (d_out, k), V_h (k, d_in), which are kept, and the q = m - k others U_l (d_out, q), S_l (q,), V_l (q, d_in).
What trains are free matrices of which only the part off the kept directions acts:

    A = A~ (I - V_h^T V_h),    B = (I - U_h U_h^T) B~

so that A V_h^T = 0 and U_h^T B = 0 after every step of every optimizer, with decay and at any sharding. Projecting gradients
instead does not keep this: AdamW rescales each coordinate after the projection. Everything is fp32, also under autocast: in
bf16 the kept directions would be met by 1/256 of what moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.carriers import stored_transposed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raycl.adapters.stacked_lora import StackedLora
    from raycl.state.stage_state import Branch


@dataclass(frozen=True)
class Directions:
    """A weight's singular directions, kept and low; fp32 on the weight's device."""

    kept_out: Tensor
    """U_h^T (k, d_out)."""
    kept_in: Tensor
    """V_h (k, d_in)."""
    low_out: Tensor
    """U_l (d_out, q)."""
    values: Tensor
    """S_l (q,)."""
    low_in: Tensor
    """V_l (q, d_in)."""
    energy: float
    """Share of the squared Frobenius norm of W that the kept directions hold."""


@torch.no_grad()
def directions(weight: Tensor, keep: int) -> Directions:
    """The directions of `weight` (d_out, d_in), of which the `keep` leading ones are kept; 0 < keep < min(d_in, d_out).

    In fp64: where two singular values are near each other, fp32 would mix what is kept with what is low. A pair of singular
    vectors has a sign by chance: here the largest entry of each left one is positive.
    """
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    signs = torch.where(u.gather(0, u.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    u, v = u * signs, v * signs.T
    squares = s.square()
    parts = (u[:, :keep].T, v[:keep], u[:, keep:], s[keep:], v[keep:])
    return Directions(
        *(part.float().contiguous() for part in parts),
        energy=float(squares[:keep].sum() / squares.sum()) if squares.any() else 1.0,
    )


@torch.no_grad()
def weight_with(layer: StackedLora, path: str, branches: Sequence[Branch]) -> Tensor:
    """W + sum_i s_i B_i A_i (d_out, d_in) of the layer at `path` in fp32, from the branches as they are stored."""
    base = layer.get_base_layer()
    weight = base.get_parameter("weight").detach().float()
    weight = weight.T if stored_transposed(base) else weight
    for branch in branches:
        a, b = branch.a[path].to(weight), branch.b[path].to(weight)
        weight = torch.addmm(weight, b, a, alpha=branch.alpha / branch.rank)
    return weight


class Guarded(nn.Module):
    """A matrix `weight` that trains, of which only what lies off the directions `kept` (k, d), orthonormal rows, acts."""

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.kept = _fixed(kept)


class GuardedDown(Guarded):
    """x (..., d_in) -> A x with A = A~ (I - V_h^T V_h); A~ (r, d_in) is `weight`."""

    def effective(self) -> Tensor:
        """A (r, d_in)."""
        return off(self.weight, self.kept)

    def forward(self, x: Tensor) -> Tensor:
        """A x, (..., r)."""
        return F.linear(x, self.effective())


class GuardedUp(Guarded):
    """z (..., r) -> B z with B = (I - U_h U_h^T) B~; B~ (d_out, r) is `weight`."""

    def effective(self) -> Tensor:
        """B (d_out, r)."""
        return off(self.weight.T, self.kept).T

    def forward(self, z: Tensor) -> Tensor:
        """B z, (..., d_out)."""
        return F.linear(z, self.effective())


class GuardedPair:
    """A branch off the kept directions: the two modules that compute it, from what A~ and B~ start as."""

    def __init__(self, a: Tensor, b: Tensor, found: Directions) -> None:
        self.down, self.up = GuardedDown(a, found.kept_in), GuardedUp(b, found.kept_out)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) as they act, without the branch's scale."""
        return self.down.effective(), self.up.effective()


class LowDown(GuardedDown):
    """x -> (A x, V_l x), (..., 2 q): how far the right directions have moved, A from 0, and where they were."""

    def __init__(self, found: Directions) -> None:
        super().__init__(torch.zeros_like(found.low_in), found.kept_in)
        self.low = _fixed(found.low_in)

    def forward(self, x: Tensor) -> Tensor:
        """Both, one after the other."""
        return F.linear(x, torch.cat([self.effective(), self.low]))


class LowUp(GuardedUp):
    """(A x, V_l x) -> D x, the update D of `LowPair`; B from 0, and z, the singular values' move, from 0."""

    def __init__(self, found: Directions) -> None:
        super().__init__(torch.zeros_like(found.low_out), found.kept_out)
        self.low, self.values = _fixed(found.low_out), _fixed(found.values)
        self.move = nn.Parameter(torch.zeros_like(found.values))

    def forward(self, z: Tensor) -> Tensor:
        """D x, (..., d_out): exactly 0 at the start, since nothing is subtracted."""
        moved, start = z.chunk(2, dim=-1)
        values = self.values + self.move
        turned = torch.cat([values * moved + self.move * start, values * (moved + start)], dim=-1)
        return F.linear(turned, torch.cat([self.low, self.effective()], dim=1))


class LowPair:
    """The low directions themselves, D = (U_l + B) diag(S_l + z) (V_l + A) - U_l diag(S_l) V_l with A, z and B from 0."""

    def __init__(self, found: Directions) -> None:
        self.down, self.up = LowDown(found), LowUp(found)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """D as a product of (d_out, q) and (q, d_in), the second one first; fp32.

        On the narrower side of W all directions off the kept ones are low ones, so that D has a rank of q at most.
        """
        right, left = self.down.effective().double(), self.up.effective().double()
        low_in, low_out = self.down.low.double(), self.up.low.double()
        move = self.up.move.double()
        values = self.up.values.double() + move
        d = low_out @ (values[:, None] * right + move[:, None] * low_in) + left @ (values[:, None] * (low_in + right))
        if d.shape[1] <= d.shape[0]:
            return self.down.low.detach(), (d @ low_in.T).float()
        return (low_out.T @ d).float(), self.up.low.detach()


def off(rows: Tensor, kept: Tensor) -> Tensor:
    """`rows` (n, d) without their part in the span of `kept` (k, d), orthonormal rows; fp32 also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows - (rows @ kept.T) @ kept


def _fixed(value: Tensor) -> nn.Parameter:
    """A parameter that never trains: as such workers agree on it, and ZeRO-3 shards it."""
    return nn.Parameter(value, requires_grad=False)
