"""Principal angles between branches against subspaces known by hand and SciPy's own function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from raycl.analysis.angles import branch_angles
from raycl.state.stage_state import Branch


def branch(**rows: object) -> Branch:
    """A branch with these A per module; B does not count."""
    a = {path: torch.tensor(values, dtype=torch.float32) for path, values in rows.items()}
    return Branch(2, 2.0, a, {path: torch.zeros(3, value.shape[0]) for path, value in a.items()})


PLANE = [[1.0, 0, 0, 0], [0, 1, 0, 0]]
SAME_PLANE = [[1.0, 1, 0, 0], [3, -2, 0, 0]]
ACROSS = [[0, 0, 5.0, 0], [0, 0, 1, 1]]
TILTED = [[1.0, 0, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize(("other", "degrees"), [(SAME_PLANE, 0), (ACROSS, 90), (TILTED, 22.5)])
def test_known_angles(other: list[list[float]], degrees: float) -> None:
    """The same plane in another basis 0, the complement 90, one of two directions turned by 45 degrees: mean 22.5."""
    angles = branch_angles([branch(q=PLANE), branch(q=other)])
    assert angles == pytest.approx(np.array([[0, degrees], [degrees, 0]]), abs=1e-4)


def test_layers_are_averaged() -> None:
    """0 in one layer and 90 in the other."""
    angles = branch_angles([branch(q=PLANE, v=PLANE), branch(q=SAME_PLANE, v=ACROSS)])
    assert angles[0, 1] == pytest.approx(45, abs=1e-4)


def test_as_scipy_has_it() -> None:
    """Random branches of unequal rank."""
    draw = np.random.default_rng(3)
    one, other = draw.normal(size=(2, 16)).astype("f4"), draw.normal(size=(5, 16)).astype("f4")
    expected = np.degrees(subspace_angles(one.T, other.T)).mean()
    assert branch_angles([branch(q=one), branch(q=other)])[0, 1] == pytest.approx(expected, abs=1e-4)


def test_what_has_no_direction_has_no_angle() -> None:
    """A stage without a branch, and a layer whose A is zero, are NaN; one branch alone is nothing to compare."""
    angles = branch_angles([branch(q=PLANE), None, branch(q=[[0.0] * 4] * 2), branch(q=ACROSS)])
    assert np.isnan(angles[:, 1:3]).all()
    assert angles[0, 3] == pytest.approx(90)
    assert branch_angles([branch(q=PLANE), None]) is None
    assert branch_angles([]) is None
