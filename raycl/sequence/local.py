"""A sequence in this process, on one device, without Ray: all at once, or one stage at a time.

Trials of a sweep and cells of a comparison go stage by stage where one device is enough: many of them share a process,
and with it the base model in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from raycl.analysis.matrix import AccuracyMatrix
from raycl.models.load import LoadedModel, load_model
from raycl.sections import ModelSpec
from raycl.sequence.history import in_store, stored_scores
from raycl.sequence.job import SequenceJob
from raycl.sequence.plan import StagePlan
from raycl.sequence.watch import woken
from raycl.sequence.worker import Report, SequenceWorker
from raycl.train.workers import Workers, cores, local_device, set_threads


def run_here(job: SequenceJob, workers: int, report: Report) -> None:
    """Run all that the store lacks, and hand every event to `report`. `workers` is 0 here: no process but this one."""
    set_threads(cores())
    worker = SequenceWorker(job, Workers(device=local_device()), report)
    worker.start_up_for_rest()
    with woken(job.spec.train.patience, lambda: in_store(job.store)) as beat:
        worker.watched(beat)
        worker.run()


@lru_cache(maxsize=1)
def keep_model(spec: ModelSpec, device: str) -> LoadedModel:
    """The base model, kept in this process for the next sequence that asks for the same one."""
    return load_model(spec, device)


def worker_here(job: SequenceJob, threads: int = 1, device: str = "cpu") -> SequenceWorker:
    """A worker of its own for one sequence among many in this process; the base model is kept for the next one."""
    set_threads(threads)
    return SequenceWorker(
        job,
        Workers(device=device),
        report=lambda event: None,
        load=keep_model,  # pyright: ignore[reportArgumentType]  # a frozen model has a hash
    )


@dataclass(frozen=True)
class StepResult:
    """A stage that is done."""

    stage: int
    task: str
    key: str
    trained: bool
    """Trained for this sequence, not found in the store."""
    measures: dict[str, float]
    """AP, FT, BWT, FWT after it."""

    def to_json(self) -> dict[str, Any]:
        """All of it in one mapping."""
        return {"stage": self.stage, "task": self.task, "key": self.key, "trained": self.trained} | self.measures


class Advancing(Protocol):
    """What brings a sequence forward: a worker in this process, or a group of workers that is waited for."""

    trained: bool
    """Whether the last stage was trained by it, not found or waited for."""

    def advance(self, stage: StagePlan) -> bool:
        """Make sure that a stage and its row of scores are stored; whether anything was to do."""
        ...

    def score(self, row: int) -> bool:
        """Make sure that a row of scores is stored; whether anything was to do."""
        ...


@dataclass
class Stepper:
    """One sequence, advanced by `step`. Its plan may end before the order does; nothing is kept but in the store."""

    job: SequenceJob
    hand: Advancing
    """What does the work."""
    done: int = field(default=0, init=False)
    """Stages done so far."""

    def __post_init__(self) -> None:
        self.matrix = AccuracyMatrix([task.name for task in self.job.tasks])

    @property
    def finished(self) -> bool:
        """Whether no stage is left."""
        return self.done == len(self.job.plan.stages)

    def step(self) -> StepResult:
        """Do the next stage and its row of scores; with the last stage also the untrained model's row, where wanted."""
        stage = self.job.plan.stages[self.done]
        self.hand.advance(stage)
        trained = self.hand.trained
        self._read(stage.row)
        self.done += 1
        if self.finished:
            self.hand.score(0)
            self._read(0)
        return StepResult(self.done, stage.task, stage.key, trained, self.matrix.summary(stage.row))

    def _read(self, row: int) -> None:
        for scored in stored_scores(self.job.store, self.job.plan, row):
            self.matrix.set(row, scored.task, scored.score)
