"""Principal angles between the input subspaces of branches: how much two tasks' LoRA pairs look at the same directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg import orth

from raycl.state.stage_state import Branch


def branch_angles(branches: Sequence[Branch | None]) -> np.ndarray | None:
    """Mean angle in degrees between any two branches' row spaces of A, shape (T, T): 0 = the same, 90 = orthogonal.

    Per layer the mean over its principal angles, then the mean over the layers. None if there are not two branches; NaN
    where a stage has none.
    """
    if sum(branch is not None for branch in branches) < 2:
        return None
    rows = [_row_spaces(branch) for branch in branches]
    angles = np.full((len(rows), len(rows)), np.nan)
    for i, one in enumerate(rows):
        for j in range(i, len(rows)):
            angles[i, j] = angles[j, i] = _mean_angle(one, rows[j])
    return angles


def _row_spaces(branch: Branch | None) -> dict[str, np.ndarray]:
    """An orthonormal basis (d_in, dimension) of every layer's row space of A; without layers where A is zero."""
    if branch is None:
        return {}
    bases = {path: orth(a.detach().double().cpu().numpy().T) for path, a in branch.a.items()}
    return {path: basis for path, basis in bases.items() if basis.size}


def _mean_angle(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Degrees, over the layers both have; NaN = no such layer."""
    means = [float(np.mean(_angles(basis, other[path]))) for path, basis in one.items() if path in other]
    return math.degrees(sum(means) / len(means)) if means else math.nan


def _angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The principal angles in radians; the bases are orthonormal already, so their cosines are singular values."""
    return np.arccos(np.clip(np.linalg.svd(one.T @ other, compute_uv=False), 0, 1))
