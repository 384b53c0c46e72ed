"""Matrices and a plan the report tests share."""

from __future__ import annotations

import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import PlannedStage


def matrix_of(tasks: list[str], stages: int | None = None) -> AccuracyMatrix:
    """Scores fall from 90 by two per stage; forward scores (untrained model, next task) lie between 30 and 60."""
    matrix = AccuracyMatrix(tasks)
    for stage in range((len(tasks) if stages is None else stages) + 1):
        for i, task in enumerate(tasks):
            if i < stage:
                matrix.set(stage, task, 90.0 - 2 * (stage - 1))
            elif stage == 0 or i == stage:
                matrix.set(stage, task, min(30.0 + 10 * (stage > 0) + i, 60.0))
    return matrix


@pytest.fixture
def four() -> AccuracyMatrix:
    return matrix_of(["dbpedia", "amazon", "yahoo", "agnews"])


@pytest.fixture
def fifteen() -> AccuracyMatrix:
    """Fifteen tasks with names as long as those of the SuperNI benchmark."""
    return matrix_of([f"task{i:04d}_multi_woz_user_utterance_generation" for i in range(15)])


@pytest.fixture
def stopped() -> AccuracyMatrix:
    """A sequence of four tasks stopped after two stages."""
    return matrix_of(["dbpedia", "amazon", "yahoo", "agnews"], stages=2)


@pytest.fixture
def plan(four: AccuracyMatrix) -> tuple[PlannedStage, ...]:
    """Stage 2 is stored."""
    return tuple(
        PlannedStage(i, task, f"a{i - 1}" * 32, stored=i == 2, train=1000, test=100)
        for i, task in enumerate(four.tasks, start=1)
    )
