"""The stage state in memory: what is newest, and what is said where there is nothing."""

from __future__ import annotations

import pytest
import torch

from raycl.state.stage_state import Branch, StagePart, StageState

BRANCH = Branch(1, 1.0, {"m": torch.zeros(1, 2)}, {"m": torch.zeros(3, 1)})


def test_the_newest_part_is_the_last_one() -> None:
    """Before the first stage there is none, and asking for it says so."""
    first, second = StagePart("one"), StagePart("two")
    state = StageState().append(first).append(second)
    assert state.newest is state.last is second
    assert StageState().last is None
    with pytest.raises(ValueError, match="no stage was done yet"):
        _ = StageState().newest


def test_a_part_without_a_branch_says_so() -> None:
    """The error names the task, whose earlier parts may have been read without their tensors."""
    assert StagePart("one", BRANCH).pair is BRANCH
    with pytest.raises(ValueError, match="part of task 'one' holds no branch"):
        _ = StageState().append(StagePart("one", BRANCH)).append(StagePart("two"), last_only=True).parts[0].pair


def test_the_length_of_an_update_is_that_of_its_matrices() -> None:
    """The Frobenius norm of (alpha / rank) b a over all modules, made in full; a shared b of zeros adds nothing."""
    generator = torch.Generator().manual_seed(0)
    a = {path: torch.randn(2, 5, generator=generator) for path in "xyz"}
    b = {path: torch.randn(3, 2, generator=generator) for path in "xy"} | {"z": torch.zeros(3, 2)}
    whole = torch.cat([(2.5 * b[path] @ a[path]).flatten() for path in "xyz"])
    assert Branch(2, 5.0, a, b).length == pytest.approx(whole.norm().item(), rel=1e-5)
