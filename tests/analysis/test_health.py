"""Signs that a stage went wrong in training, or learned nothing: at the rate of guessing, or without an end."""

from __future__ import annotations

import math

import pytest

from raycl.analysis.health import signs, training_signs
from raycl.events import Step

ANSWERS = [["good"]] * 12 + [["bad"]] * 8


@pytest.mark.parametrize(("score", "says"), [(60.0, True), (40.0, True), (0.0, True), (65.0, False), (100.0, False)])
def test_a_score_of_labels_is_set_against_the_most_frequent_one(score: float, says: bool) -> None:
    found = signs(score, ANSWERS, ["good", "bad"], [True] * 20)
    assert bool(found) == says
    assert all("always answering 'good' (60.0)" in one for one in found)


def test_free_text_has_no_chance() -> None:
    assert signs(0.0, ANSWERS, None, [True] * 20) == []


def test_answers_that_all_run_into_the_limit() -> None:
    """One that ends is enough to say nothing."""
    (found,) = signs(90.0, ANSWERS, ["good", "bad"], [False] * 20)
    assert "has not learned to stop" in found
    assert signs(90.0, ANSWERS, ["good", "bad"], [False] * 19 + [True]) == []


def test_of_a_few_examples_nothing_is_said() -> None:
    assert signs(0.0, ANSWERS[:19], ["good", "bad"], [False] * 19) == []


def log_of(losses: list[float], norms: list[float] | None = None, **gauges: float) -> list[Step]:
    """The records of stage 2."""
    kept = [{"grad_norm": norm} for norm in norms] if norms else [{}] * len(losses)
    return [
        Step(2, step, len(losses), 1e-3, loss, 1.0, gauges=one | gauges)
        for step, (loss, one) in enumerate(zip(losses, kept, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([2.0, 9.0], True),  # above ln(1000) = 6.9 and 1.5 times the first
        ([2.0, 6.8], False),
        ([6.9, 9.0], False),  # an untrained model begins at about ln(1000)
        ([6.9, 10.4], True),
        ([9.0], False),
        ([40.0, 2.0], False),
        ([2.0, 60.0, 1.0], False),
    ],
)
def test_a_loss_above_guessing_any_token(losses: list[float], says: bool) -> None:
    found = training_signs(log_of(losses), 1000, [])
    assert bool(found) == says
    assert all(
        f"grew from {losses[0]:.3g} to {losses[-1]:.3g}, and guessing any token has 6.91" in one for one in found
    )


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        ([1, 2, 3, 2, 1, 301], True),
        ([1, 2, 3, 2, 1, 300], False),
        ([1, 2, 3, 2, 301], False),  # four are too few to know what is usual
        ([1, 2, 3, 2, 1, 1, 400, 1], True),
        ([0, 0, 0, 0, 0, 5], False),
        ([9, 1e-6, 1e-6, 1e-6, 1e-6, 1], False),  # one hard row after all was learnt
    ],
)
def test_a_gradient_out_of_all_proportion(norms: list[float], says: bool) -> None:
    found = training_signs(log_of([1.0] * len(norms), norms), 1000, [])
    assert bool(found) == says
    assert all("and 3 at most before" in one for one in found)


@pytest.mark.parametrize(
    ("lengths", "says"),
    [([], False), ([500.0], False), ([1.0, 100.0], False), ([1.0, 101.0], True), ([1.0, 3.0, 2.0, 201.0], True)],
)
def test_an_update_is_set_against_those_of_the_stages_before(lengths: list[float], says: bool) -> None:
    assert bool(training_signs([], 1000, lengths)) == says
    assert training_signs([], 1000, [0.0, 1.0]) == []


def test_a_gate_that_keeps_the_stage_out_of_its_own_task() -> None:
    """The gauge of the stage's own branch counts, at its end; other gauges and branches do not."""
    assert training_signs(log_of([1.0], **{"gate_mean/1": 0.0, "gate_mean/2": 0.02, "other/2": 0.0}), 1000, []) == []
    for name in ("gate_mean", "attention"):
        (found,) = training_signs(log_of([1.0], **{f"{name}/2": 0.001}), 1000, [])
        assert f"weight 0.001 ({name}) on its own task" in found


def test_a_number_that_is_none_is_no_sign() -> None:
    """It ends a run by itself; old records have nulls for some."""
    assert (
        training_signs(log_of([1.0] * 6, [1.0, 1.0, 1.0, 1.0, 1.0, math.nan], **{"gate_mean/2": math.nan}), 9, []) == []
    )
