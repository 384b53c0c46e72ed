"""A small sequence as its events, told to MLflow's listener."""

from __future__ import annotations

from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import (
    Dataset,
    Phase,
    PlannedStage,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageStart,
    Status,
    Step,
    Term,
)
from raycl.tracking.records import About
from raycl.tracking.tracker import Tracker

SPEC: dict[str, Any] = {
    "order": "demo",
    "tasks": ["reviews", "plots (long)"],
    "model": {"name": "packaged", "precision": "fp32"},
    "method": {"name": "o_lora", "rank": 8},
    "train": {"lr": [0.001, 0.0005], "epochs": 1},
    "seed": 3,
    "preset": "smoke",
}
PLAN = (
    PlannedStage(1, "reviews", "a" * 64, stored=False, train=100, test=20),
    PlannedStage(2, "plots (long)", "b" * 64, stored=True, train=90, test=10),
)


ABOUT = About("All of it.", {"git": {"commit": "c" * 40, "dirty": True}})


def step(stage: int, number: int, loss: float) -> Step:
    """A log record."""
    return Step(stage, number, 3, 0.001, loss, 100.0, {"orthogonal": Term(2.0, 1.0, 0.5)}, {"overlap": 0.1})


def end(stage: int, cached: bool, log: tuple[Step, ...] = ()) -> StageEnd:
    """The end of a stage."""
    planned = PLAN[stage - 1]
    seconds = {"train": 4.0, "pass": 0.0, "evaluation": 1.0, "other": 0.5}
    return StageEnd(
        stage, planned.task, planned.key, cached, seconds, {"overlap": 0.2}, log, () if cached else ("it limps",)
    )


DATA = tuple(
    Dataset(task, split, digest * 64, rows, {"source": "hub", "licence": "CC"})
    for task, digest in (("reviews", "a"), ("plots (long)", "b"))
    for split, rows in (("train", 100), ("test", 20))
)


def first_stage(tracker: Tracker) -> None:
    """The events of stage 1, trained here."""
    tracker.handle(StageStart(1, "reviews", 3))
    for number in (1, 2, 3):
        tracker.handle(step(1, number, 1.0 / number))
    tracker.handle(Phase(1, "evaluation", 1, 2))
    tracker.handle(end(1, cached=False))


def scores(tracker: Tracker, matrix: AccuracyMatrix) -> None:
    """All scores of the sequence, row by row."""
    for stage, row in enumerate([(10.0, 20.0), (80.0, 30.0), (70.0, 60.0)]):
        for task, score in zip(SPEC["tasks"], row, strict=True):
            matrix.set(stage, task, score)
            tracker.handle(Scored(stage, task, "exact_match", score, 5, 0.1, True))
        if stage:
            tracker.handle(RowDone(stage, matrix.seen(stage), matrix.summary(stage)))


def start(tracker: Tracker, spec: dict[str, Any] = SPEC) -> str:
    """Begin a sequence; the id of its run."""
    tracker.handle(SequenceStart(spec, PLAN, {"device": "cpu", "store": "/a store"}, DATA, ABOUT.environment))
    tracker.wait()
    return tracker.run_id


def finish(tracker: Tracker, matrix: AccuracyMatrix | None = None, status: Status = "FINISHED") -> None:
    """End a sequence."""
    tracker.handle(SequenceEnd(status, (matrix or AccuracyMatrix(SPEC["tasks"])).to_json()))
