"""What listeners are told of a sequence: what happens live, and what the store already holds, each thing once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import (
    Dataset,
    Event,
    Listener,
    PlannedStage,
    Routing,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageEvent,
    Status,
)
from raycl.files import Json
from raycl.methods.registry import method_class
from raycl.sequence.history import Missing, stored_routing, stored_scores, stored_stage
from raycl.sequence.job import SequenceJob
from raycl.sequence.plan import StagePlan
from raycl.tasks.task import Task

SOURCE = ("source", "layout", "hub", "files", "licence")
"""Fields of a task's record that say where its data come from."""


def datasets(tasks: Sequence[Task]) -> tuple[Dataset, ...]:
    """Train and test split of each task."""
    found = []
    for task in tasks:
        source = {name: task.record[name] for name in SOURCE if name in task.record}
        found.append(Dataset(task.name, "train", task.train_fingerprint, len(task.train), source))
        found.append(Dataset(task.name, "test", task.test_fingerprint, len(task.test), source))
    return tuple(found)


class Chronicle:
    """Tells listeners what happens in a sequence, live or read from the store, each thing once, and keeps the matrix."""

    def __init__(self, job: SequenceJob, listeners: Sequence[Listener]) -> None:
        self.job = job
        self.listeners = tuple(listeners)
        """In the order in which they hear."""
        self.matrix = AccuracyMatrix([task.name for task in job.tasks])
        self.trained_at: float | None = None
        """When the last stage so far was trained, by `time.time`; none if all were stored."""
        self._heard: set[str] = set()
        """Keys of stages and cells that were told of."""
        self._rows: set[int] = set()
        self._further: dict[tuple[int, str], Mapping[str, float]] = {}
        """(row, task) -> its further metrics."""
        self._doubtful: dict[tuple[int, str], tuple[float, int]] = {}
        """(row, task) -> share of its answers that rounding may turn, and how many answers there are."""

    def start(self, missing: Missing, places: Mapping[str, str] | None = None) -> None:
        """Say what is going to happen; `places` as in `SequenceStart`."""
        job, spec = self.job, self.job.spec.model_dump(mode="json")
        self._tell(SequenceStart(spec, self._planned(missing), places or {}, datasets(job.tasks), job.environment))

    def _planned(self, missing: Missing) -> tuple[PlannedStage, ...]:
        return tuple(
            PlannedStage(
                stage.stage, stage.task, stage.key, stage.stage not in missing.stages, len(task.train), len(task.test)
            )
            for stage, task in zip(self.job.plan.stages, self.job.stage_tasks, strict=True)
        )

    def handle(self, event: StageEvent) -> None:
        """Hand on one event; a score fills every cell with the same key, and a row that is whole is told of."""
        if isinstance(event, StageEnd):
            self._heard.add(event.key)
            self.trained_at = self.trained_at if event.cached else time.time()
        if not isinstance(event, Scored):
            self._tell(event)
            return
        cells = self.job.plan.cells_of(event.stage)
        key = next(cell.key for cell in cells if cell.task == event.task)
        for cell in self.job.plan.cells:
            if cell.key == key:
                self.matrix.set(cell.stage, cell.task, event.score)
                if event.further:
                    self._further[cell.stage, cell.task] = event.further
                if event.doubtful is not None:
                    self._doubtful[cell.stage, cell.task] = event.doubtful, event.examples
        self._heard.add(key)
        self._tell(event)
        if event.stage and all(cell.key in self._heard for cell in cells):
            self._row_done(event.stage)

    def _row_done(self, row: int) -> None:
        if row not in self._rows:
            self._rows.add(row)
            scores = self.matrix.seen(row)
            further = self.further(row)
            self._tell(RowDone(row, scores, self.matrix.summary(row), self._routing(row), further, self._doubts(row)))

    def _doubts(self, row: int) -> float | None:
        """Share of a row's answers that rounding may turn, over the tasks seen of which it is known."""
        known = [self._doubtful[row, task] for task in self.matrix.seen(row) if (row, task) in self._doubtful]
        answers = sum(count for _, count in known)
        return sum(share * count for share, count in known) / answers if answers else None

    def further(self, row: int) -> dict[str, Mapping[str, float]]:
        """The further metrics of a row, of the tasks seen by then that have any."""
        seen = self.matrix.seen(row)
        return {task: found for task in seen if (found := self._further.get((row, task)))}

    def _routing(self, row: int) -> Routing | None:
        """How the inputs of a stored row were routed; none where the method does not."""
        job = self.job
        chooses = method_class(job.spec.method.name).chooses
        return stored_routing(job.store, job.plan, row) if chooses else None

    def catch_up(self, cached: bool = True) -> None:
        """Tell what the store holds and nobody reported: earlier runs' results, or a lost worker's last words."""
        for stage in self.job.plan.stages:
            self.catch_up_stage(stage, cached)
        self._catch_up_row(0)

    def catch_up_stage(self, stage: StagePlan, cached: bool = True) -> None:
        """The same for one stage and its row."""
        if stage.key not in self._heard and self.job.store.has(stage.key):
            self.handle(stored_stage(self.job.store, stage, cached))
        self._catch_up_row(stage.row)

    def _catch_up_row(self, row: int) -> None:
        cells = self.job.plan.cells_of(row)
        if any(cell.key not in self._heard for cell in cells):
            for scored in stored_scores(self.job.store, self.job.plan, row):
                self.handle(scored)
        elif row and cells:
            self._row_done(row)

    def end(self, status: Status, facts: Json | None = None, places: Mapping[str, str] | None = None) -> None:
        """Say how it ended; `facts` and `places` as in `SequenceEnd`."""
        routing = self._routing(self.job.plan.stages[-1].row) if status == "FINISHED" else None
        last = self.further(self.job.plan.stages[-1].row)
        facts = (facts or {}) | ({"further_metrics": last} if facts and last else {})
        self._tell(SequenceEnd(status, self.matrix.to_json(), facts, places or {}, routing))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener.handle(event)
