"""A sequence that goes forward one stage at a time in this process, on one device and without Ray Train.

Trials of a sweep and cells of a comparison run this way where one device is enough: many of them share a process, and
with it the base model in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.models.load import LoadedModel, load_model
from raycl.sequence.plan import Cell, Plan
from raycl.sequence.worker import SequenceWorker
from raycl.spec import ModelSpec, RunSpec
from raycl.state.store import Store
from raycl.tasks.task import Task
from raycl.train.workers import Workers, set_threads

Event = dict[str, Any]


@lru_cache(maxsize=1)
def keep_model(spec: ModelSpec, device: str) -> LoadedModel:
    """The base model, kept in this process for the next sequence that asks for the same one."""
    return load_model(spec, device)


@dataclass
class Stepper:
    """One sequence, advanced by `step`. Its plan may end before the order does; nothing is kept but in the store."""

    spec: RunSpec
    tasks: list[Task]
    plan: Plan
    store: Store
    environment: dict[str, Any]
    """Recorded in the manifests of the stages made here."""
    threads: int = 1
    """CPU threads of this process."""
    device: str = "cpu"
    report: Callable[[Event], None] = lambda event: None
    load: Callable[[ModelSpec, str], LoadedModel] = keep_model
    done: int = field(default=0, init=False)
    """Stages done so far."""

    def __post_init__(self) -> None:
        set_threads(self.threads)
        self.matrix = AccuracyMatrix([task.name for task in self.tasks])
        workers = Workers(device=self.device)
        args = (self.spec, self.plan, self.tasks, self.store, workers, self.report, self.environment, self.load)
        self._worker = SequenceWorker(*args)

    @property
    def finished(self) -> bool:
        """Whether no stage is left."""
        return self.done == len(self.plan.stages)

    def step(self) -> Event:
        """Do the next stage and its row of scores: stage, task, key, `trained` (or found in the store), AP, FT, BWT, FWT."""
        if self.done == 0:
            self._worker.score_untrained()
            self._read(self.plan.cells_of(0))
        stage = self.plan.stages[self.done]
        self._worker.advance(stage)
        self._read(self.plan.cells_of(stage.row))
        self.done += 1
        facts = {"stage": self.done, "task": stage.task, "key": stage.key, "trained": self._worker.trained}
        return facts | self.matrix.summary(stage.row)

    def _read(self, cells: list[Cell]) -> None:
        for cell in cells:
            self.matrix.set(cell.stage, cell.task, self.store.read_scores(cell.key)["score"])
