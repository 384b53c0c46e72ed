"""One trial of a sweep: its point as a sequence that goes forward stage by stage, on one device or in a worker group.

What a trial is made from is plain data (`TrialSettings`), so that any process of a cluster can make it. No Ray here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from raycl.models.load import fingerprint
from raycl.sequence.local import Stepper
from raycl.sequence.plan import Plan, StagePlan, make_plan
from raycl.sequence.resolve import resolve
from raycl.spec import Json, ModelSpec, RunSpec, Strict
from raycl.state.store import Store
from raycl.sweep.spaces import Point, layer
from raycl.tasks.task import Task

Event = dict[str, Any]
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
    environment: Json
    """Recorded in the manifests."""
    workers: int = 1
    """Ray Train workers of a trial; 1 = the trial's own process."""
    threads: int = 1
    """CPU threads of the trial's process, or of each of its workers."""
    device: str = "cpu"

    def spec(self, point: Point) -> RunSpec:
        """The run spec at a point. Raises SpecError that lists every problem."""
        return resolve(self.preset, [*self.layers, layer(point)], self.gpus)


@lru_cache(maxsize=8)
def known_fingerprint(model: ModelSpec) -> str:
    """The model's fingerprint, computed once in a process."""
    return fingerprint(model)


def plan_of(spec: RunSpec, tasks: list[Task]) -> Plan:
    """The plan of a trial."""
    return make_plan(spec, tasks, known_fingerprint(spec.model))


def open_trial(settings: TrialSettings, point: Point, tasks: list[Task]) -> Stepper:
    """The sequence of a point, ready for its first step. Raises SpecError if the point makes no valid spec."""
    spec = settings.spec(point)
    kind = Stepper if settings.workers <= 1 else GroupStepper
    store = Store(settings.store)
    threads = settings.threads if settings.workers <= 1 else 1
    stepper = kind(spec, tasks, plan_of(spec, tasks), store, settings.environment, threads, settings.device)
    if isinstance(stepper, GroupStepper):
        stepper.use_workers(settings.workers, settings.threads)
    return stepper


class GroupStepper(Stepper):
    """A sequence whose stages are made by a Ray Train worker group that runs beside this process."""

    def use_workers(self, workers: int, threads: int) -> None:
        """Say how large the group is; it starts with the first stage that is missing."""
        spec, plan, tasks, store, environment = self.spec, self.plan, self.tasks, self.store, self.environment
        self._worker = Group(spec, plan, tasks, store, environment, workers, threads)

    def close(self) -> None:
        """End the worker group, whose resources the next trial needs."""
        self._worker.close(self.finished)


@dataclass
class Group:
    """Waits for what a worker group makes; stands where a `Stepper` has its own worker."""

    spec: RunSpec
    plan: Plan
    tasks: list[Task]
    store: Store
    environment: Json
    workers: int
    threads: int
    trained: bool = False
    """Whether the group trained the last stage, and did not find it or wait for it."""
    _made: set[str] = field(default_factory=set)
    _groups: list[Any] = field(default_factory=list)
    """What Ray holds for the group, each time that it was started."""
    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    def score_untrained(self) -> None:
        """Wait for the row before the first stage."""
        self._wait(None, 0)

    def advance(self, stage: StagePlan) -> bool:
        """Wait for a stage and its row of scores."""
        self._wait(stage.key, stage.row)
        self.trained = stage.key in self._made
        return self.trained

    def _wait(self, key: str | None, row: int) -> None:
        cells = [cell.key for cell in self.plan.cells_of(row)]
        while True:
            ended = self._thread is not None and not self._thread.is_alive()
            if (key is None or self.store.has(key)) and all(map(self.store.has_scores, cells)):
                return
            if self._error is not None or ended:
                raise self._error or RuntimeError(f"the worker group ended without row {row}")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._thread.join(POLL_SECONDS)

    def _run(self) -> None:
        from raycl.sequence.group import run_workers

        try:
            run_workers(
                self.spec,
                self.plan,
                self.tasks,
                self.store,
                self.workers,
                self.environment,
                self._hear,
                threads=self.threads,
                nested=True,
            )
        except BaseException as error:
            self._error = error

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

    def _hear(self, event: Event) -> None:
        if event["event"] == "group":
            self._groups.append(event["group"])
        if event["event"] == "stage_end":
            self._made.add(event["key"])


def capacity(nodes: Sequence[Mapping[str, float]], need: Mapping[str, float], workers: int = 1) -> int:
    """How many trials fit on the nodes at once, if each of a trial's workers needs `need` on one node."""
    slots = sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items() if amount) for node in nodes
    )
    return slots // max(1, workers)
