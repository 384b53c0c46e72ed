"""Arithmetic on branches, outside of a model: sums as one, the nearest one of a smaller rank, what layers serve read off.

    sum        A = [A_1; ...; A_T] (r_1 + ... + r_T, d_in),  B = [s_1 B_1, ..., s_T B_T] (d_out, r_1 + ... + r_T)
    truncated  s B = Q_b R_b,  A^T = Q_a R_a,  R_b R_a^T = U S V^T,  of S the k largest:
               B' = Q_b U S^1/2,  A' = S^1/2 V^T Q_a^T

With alpha = rank, so that B A is the sum of s_i B_i A_i, exactly; B' A' is the nearest matrix of rank k to it (Eckart and
Young), found on cores of the branches' rank and in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.carriers import stored_transposed
from raycl.adapters.stacked_lora import CURRENT, StackedLora
from raycl.state.stage_state import Branch

Weights = Mapping[str, Sequence[float]]
"""Path of a layer -> the weight of each branch in it, oldest first."""


def added(branches: Sequence[Branch]) -> Branch:
    """The sum of branches as one; the equation stands at the top of this file."""
    if len(branches) == 1:
        return branches[0]
    a = {path: torch.cat([branch.a[path] for branch in branches]) for path in branches[0].a}
    b = {path: torch.cat([_scaled(branch, path) for branch in branches], dim=1) for path in a}
    rank = sum(branch.rank for branch in branches)
    return Branch(rank, float(rank), a, b)


def truncated(branch: Branch, rank: int) -> Branch:
    """The nearest branch of at most `rank`, module by module; fp32."""
    pairs = {path: _truncated(branch.a[path], _scaled(branch, path), rank) for path in branch.a}
    a, b = ({path: pair[side] for path, pair in pairs.items()} for side in (0, 1))
    return Branch(rank, float(rank), a, b)


def cast(branch: Branch, dtype: torch.dtype) -> Branch:
    """The same with its factors rounded to a type."""
    sides = ({path: value.to(dtype) for path, value in side.items()} for side in (branch.a, branch.b))
    return replace(branch, **dict(zip("ab", sides, strict=True)))


@torch.no_grad()
def read_off(model: Any, weights: Weights | None) -> Branch:
    """All branches that the layers of a model hold, as one; `weights` none, or of a layer that it lacks: all count as 1."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, StackedLora)}
    held = {path: _held(layer, (weights or {}).get(path)) for path, layer in layers.items()}
    a, b = ({path: pair[side].contiguous() for path, pair in held.items()} for side in (0, 1))
    rank = len(next(iter(a.values())))
    return Branch(rank, float(rank), a, b)


@torch.no_grad()
def merge_into(model: Any, branch: Branch) -> None:
    """W + (alpha / rank) B A in the place of W, computed in fp64, for every module of the branch."""
    for path, down in branch.a.items():
        module = model.get_submodule(path)
        update = _scaled(branch, path).double() @ down.double()
        weight = module.weight
        update = (update.T if stored_transposed(module) else update).to(weight.device)
        weight.copy_((weight.double() + update).to(weight.dtype))


def _scaled(branch: Branch, path: str) -> Tensor:
    """s B of a module."""
    return branch.b[path] * (branch.alpha / branch.rank)


def _truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A' (rank, d_in) and B' (d_out, rank); zeros fill up what a module is too small for."""
    (q_b, r_b), (q_a, r_a) = (torch.linalg.qr(value.double()) for value in (b, a.T))
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    down, up = root[:, None] * (v[:rank] @ q_a.T), (q_b @ u[:, :rank]) * root
    lacking = rank - len(root)
    down, up = torch.nn.functional.pad(down, (0, 0, 0, lacking)), torch.nn.functional.pad(up, (0, lacking))
    return down.float().contiguous(), up.float().contiguous()


def _held(layer: StackedLora, weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """A and s B of all branches of a layer under their weights, on the CPU in fp32."""
    a: list[Tensor] = [layer.down]
    b: list[Tensor] = [layer.up * layer.scaling[CURRENT]]
    if layer.frozen_a is not None and layer.frozen_b is not None:
        a, b = [layer.frozen_a, *a], [layer.frozen_b, *b]
    if weights is not None:
        column = torch.tensor(weights, dtype=torch.float32, device=layer.down.device)
        b[-1] = b[-1] * column[-1]
        if len(b) > 1:
            b[0] = b[0] * layer.per_column(column[:-1])
    whole = torch.cat(a), torch.cat(b, dim=1)
    return whole[0].to("cpu", torch.float32), whole[1].to("cpu", torch.float32)
