"""The gain against the least-squares problem that it solves, and what it is when inputs are alike."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.adapters.matrix_gain import merged

OUT, RANK = 6, 4


def stages(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each stage trained B to, and its C: positive definite and of sizes of their own."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(50, RANK, generator=draw, dtype=torch.float64) * (1 + i) for i in range(count)]
    return [(torch.randn(OUT, RANK, generator=draw, dtype=torch.float64), z.T @ z / len(z)) for z in rows]


def in_turn(found: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """B after all stages, merged one after another."""
    (b, total), *rest = found
    for trained, own in rest:
        b, total = merged(b, trained, own, total), total + own
    return b


def test_it_is_the_joint_least_squares_solution() -> None:
    """argmin sum_i E_i |(B - B_i) z|^2, by stacking the square roots of all C; only the ridge, 1e-6, is between them."""
    found = stages(3)
    roots = [torch.linalg.cholesky(own) for _, own in found]
    wanted = torch.cat([b @ root for (b, _), root in zip(found, roots, strict=True)], dim=1)
    solution = torch.linalg.lstsq(torch.cat(roots, dim=1).T, wanted.T).solution.T
    assert (in_turn(found) - solution).norm() < 3e-6 * solution.norm()


def test_equal_inputs_make_it_the_mean() -> None:
    found = stages(4)
    same = [(b, found[0][1]) for b, _ in found]
    mean = torch.stack([b for b, _ in found]).mean(dim=0)
    assert (in_turn(same) - mean).norm() < 3e-6 * mean.norm()


def test_a_stage_whose_inputs_are_elsewhere_leaves_earlier_outputs_alone() -> None:
    """C on the last coordinates only: B z stays for z on the first, and becomes the trained one for the others."""
    (before, _), (trained, _) = stages(2)
    earlier, own = torch.diag(torch.tensor([1.0, 1, 0, 0])).double(), torch.diag(torch.tensor([0.0, 0, 1, 1])).double()
    after = merged(before, trained, own, earlier)
    assert torch.allclose(after[:, :2], before[:, :2], atol=1e-5) and torch.allclose(
        after[:, 2:], trained[:, 2:], atol=1e-5
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_basis_that_a_is_written_in_does_not_matter(seed: int) -> None:
    """A -> R A and B -> B R^-1: the same function, merged to the same function."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.eye(RANK, dtype=torch.float64) + 0.3 * torch.randn(RANK, RANK, generator=draw, dtype=torch.float64)
    back = torch.linalg.pinv(turn)
    found = stages(2, seed)
    turned = [(b @ back, turn @ own @ turn.T) for b, own in found]
    if torch.linalg.cond(turn) < 20:
        assert (in_turn(turned) @ turn - in_turn(found)).norm() < 1e-3 * in_turn(found).norm()
