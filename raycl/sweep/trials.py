"""One trial of a sweep: its point as a sequence that goes forward stage by stage, on one device or in a worker group.

What a trial is made from is plain data (`TrialSettings`), so that any process of a cluster can make it. No Ray here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycl.events import StageEnd, StageEvent
from raycl.fields import Strict
from raycl.files import Json, reach
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.local import Stepper, worker_here
from raycl.sequence.plan import StagePlan
from raycl.sequence.resolve import resolve
from raycl.sequence.siblings import Sibling, Together
from raycl.spec import RunSpec
from raycl.state.store import Store
from raycl.sweep.spaces import Point, layer
from raycl.tasks.task import Task

Packs = Mapping[str, Sequence[tuple[Point, int]]]
"""Key of a stage -> the stages to train with it, itself among them: a trial's point, and the place in its sequence."""
POLL_SECONDS = 0.5
"""How often a trial looks whether its worker group has finished a stage."""
CLOSE_SECONDS = 10.0
"""How long a worker group may take to end."""


class TrialSettings(Strict):
    """What all trials of a sweep have in common."""

    preset: str
    layers: list[Json]
    """Layers of the run spec below a trial's point, weakest first."""
    gpus: int
    """GPUs of the cluster: decides what the preset `auto` is."""
    store: str
    workers: int = 1
    """Ray Train workers of a trial; 1 = the trial's own process."""
    threads: int = 1
    """CPU threads of the trial's process, or of each of its workers."""
    device: str = "cpu"
    folders: tuple[str, ...] = ()
    """Where a trial's process looks for methods from outside of raycl, after all else."""

    def spec(self, point: Point) -> RunSpec:
        """The run spec at a point. Raises SpecError that lists every problem."""
        return resolve(self.preset, [*self.layers, layer(point)], self.gpus)

    def job(self, point: Point, tasks: list[Task]) -> SequenceJob:
        """The sequence at a point. Raises SpecError if the point makes no valid spec."""
        return make_job(self.spec(point), Store(self.store), tasks)


def open_trial(settings: TrialSettings, point: Point, tasks: list[Task], packs: Packs | None = None) -> Stepper:
    """The sequence of a point, ready for its first step; a stage that is in one of the `packs` is trained with the others.

    Raises SpecError if the point makes no valid spec.
    """
    reach(settings.folders)
    job = settings.job(point, tasks)
    if settings.workers > 1:
        return Stepper(job, Group(job, settings.workers, settings.threads))
    worker = worker_here(job, settings.threads, settings.device)
    if not packs:
        return Stepper(job, worker)

    def siblings(stage: StagePlan) -> Iterable[Sibling]:
        for other, place in packs.get(stage.key, ()):
            theirs = settings.job(other, tasks)
            if theirs.plan.stages[place].key != stage.key:
                yield worker_here(theirs, settings.threads, settings.device), theirs.plan.stages[place]

    return Stepper(job, Together(worker, siblings))


def note_of(stepper: Stepper) -> str:
    """What a trial has to say beside its measures; empty = nothing."""
    note = stepper.hand.note if isinstance(stepper.hand, Together) else ""
    return f"Stages are trained one by one: {note}." if note else ""


def close_trial(stepper: Stepper) -> None:
    """End a trial's worker group, if it has one: the next trial needs its resources."""
    if isinstance(stepper.hand, Group):
        stepper.hand.close(stepper.finished)


@dataclass
class Group:
    """Waits for what a Ray Train worker group makes, which runs beside this process; it starts when a stage is missing."""

    job: SequenceJob
    workers: int
    threads: int
    """CPU threads of each worker."""
    trained: bool = field(default=False, init=False)
    """Whether the group trained the last stage, and did not find it or wait for it."""
    _made: set[str] = field(default_factory=set, init=False)
    _groups: list[Any] = field(default_factory=list, init=False)
    """What Ray holds for the group, each time that it was started."""
    _thread: threading.Thread | None = field(default=None, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def advance(self, stage: StagePlan) -> bool:
        """Wait for a stage and its row of scores."""
        self._wait(stage.key, stage.row)
        self.trained = stage.key in self._made
        return self.trained

    def score(self, row: int) -> bool:
        """Wait for a row of scores."""
        self._wait(None, row)
        return False

    def _wait(self, key: str | None, row: int) -> None:
        store, cells = self.job.store, [cell.key for cell in self.job.plan.cells_of(row)]
        while True:
            ended = self._thread is not None and not self._thread.is_alive()
            if (key is None or store.has(key)) and all(map(store.has_scores, cells)):
                return
            if self._error is not None or ended:
                raise self._error or RuntimeError(f"the worker group ended without row {row}")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._thread.join(POLL_SECONDS)

    def _run(self) -> None:
        from raycl.sequence.group import Nested, run_group

        try:
            run_group(self.job, self.workers, self._hear, Nested(self.threads, self._groups.append))
        except BaseException as error:
            self._error = error

    def _hear(self, event: StageEvent) -> None:
        if isinstance(event, StageEnd):
            self._made.add(event.key)

    def close(self, finished: bool) -> None:
        """End the group: of a `finished` sequence by itself, else by force, in the middle of the stage it is at."""
        if self._thread is None:
            return
        if finished:
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            from raycl.sequence.group import end_group

            for group in self._groups:
                end_group(group)
            self._thread.join(CLOSE_SECONDS)
