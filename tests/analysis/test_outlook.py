"""Estimates of time and memory, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raycl.analysis.cost import Rates, Work, exchange
from raycl.analysis.outlook import Load, Memory, Outlook, RowOutlook, Scoring, Speed, StageOutlook, memory

LOAD = Load(
    parameters=1_000,
    trained=10,
    width=4,
    layers=3,
    vocabulary=50,
    weight_bytes=2.0,
    moments=2,
    activation_bytes=2,
    tokens=2 * 5,
    answers=2 * 3,
    world=4,
    zero_stage=0,
    checkpointing=False,
)


def test_memory() -> None:
    """Base weights in their precision, what trains in fp32 with its gradients and two moments, an allowance."""
    # 34 * 2 rows of 5 tokens * 4 wide * 3 layers = 4080; logits 2 * 4 bytes * 2 rows * 3 tokens * 50 words = 2400
    assert memory(LOAD) == Memory(2_000, 40, 40, 80, 4_080 + 2_400)
    assert memory(LOAD).total == 8_640
    assert memory(replace(LOAD, activation_bytes=4)).activations == 8_160 + 2_400
    assert memory(replace(LOAD, moments=1)).moments == 40
    assert memory(replace(LOAD, checkpointing=True)).activations == 240 + 2_400


@pytest.mark.parametrize(
    ("stage", "held"), [(1, (2_000, 40, 40, 20)), (2, (2_000, 40, 10, 20)), (3, (500, 40, 10, 20))]
)
def test_zero_shares_out_moments_then_gradients_then_weights(stage: int, held: tuple[int, ...]) -> None:
    """Over four workers; what trains stays whole."""
    found = memory(replace(LOAD, zero_stage=stage))
    assert (found.weights, found.trained, found.gradients, found.moments) == held


def test_time() -> None:
    """Tokens with padding over the speed, with the work beside training; none where nothing is known."""
    stored = StageOutlook(1, "a", "k", True, 10, 5)
    first = replace(stored, stage=2, stored=False, tokens=900, run=600, train=Work(30.0))
    stages = (stored, first, replace(first, stage=3, run=400, train=Work(50.0)))
    rows = (RowOutlook(1, 10, Work(5.0)), RowOutlook(2, 30, Work(9.0)))
    outlook = Outlook(stages, Scoring(3, 1, 40), memory(LOAD), 1_000, rows=rows)
    assert outlook.training_seconds is None and outlook.scoring_seconds is None
    known = replace(outlook, speed=Speed(200.0, 1.5, 1, True), scoring=Scoring(3, 1, 40, 0.25))
    assert known.training_seconds == 1_000 / 200 * 1.5
    assert known.scoring_seconds == 10
    # 5 s of training over the multiply-adds of both stages, and half of it beside
    assert known.seconds[2] == {"train": 1.875, "passes": 0.9375, "score": 7.5}
    assert known.seconds[3] == {"train": 3.125, "passes": 1.5625, "score": 0.0}


def test_time_where_nothing_was_measured() -> None:
    """Work over the stated rates and the workers, and the gradients of each step; what is stored costs nothing."""
    stage = StageOutlook(1, "a", "k", False, 10, 5, 900, 1_000, train=Work(80.0, 4), passes=Work(40.0))
    stages = (stage, StageOutlook(2, "b", "l", True, 10, 5))
    rates = Rates(products=2.0, forward=4.0, moved=4.0, layer=0.5, source="stated")
    rows = (RowOutlook(0, 4, Work(written=8.0, moved=32.0)),)
    found = Outlook(stages, Scoring(3, 0, 4), memory(LOAD), 1_000, rows=rows, rates=rates, workers=2, trained=1_000)
    assert found.seconds[1]["train"] == pytest.approx((40 + 2) / 2 + 5 * exchange(1_000, 2))
    assert (found.seconds[1]["passes"], found.seconds[2]["train"]) == (5.0, 0.0)
    assert found.seconds[0] == {"train": 0.0, "passes": 0.0, "score": 4.0}  # bound by what is read: 32 / 4 / 2
    assert found.stored_bytes == 4 * 1_000 + 150 * 4
