"""Records a sweep while it runs: what Tune reports becomes the record, MLflow runs and lines on the terminal. No Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.errors import SpecError
from raycl.report.sweeps import SweepTerminal
from raycl.sequence.driver import Options
from raycl.sequence.plan import Plan
from raycl.state.store import Store
from raycl.sweep.plan import SweepPlan
from raycl.sweep.record import SweepRecord, TrialRecord
from raycl.sweep.spaces import Point
from raycl.sweep.trials import plan_of
from raycl.tracking.tracker import Tracker

Event = dict[str, Any]


@dataclass
class OpenTrial:
    """What the driver holds of a trial while it runs."""

    plan: Plan
    tracker: Tracker
    matrix: AccuracyMatrix


@dataclass
class SweepDriver:
    """Turns what Tune reports into the record, MLflow and lines on the terminal. The only writer of all three."""

    plan: SweepPlan
    record: SweepRecord
    store: Store
    folder: Path
    options: Options
    terminal: SweepTerminal
    opened: dict[str, OpenTrial] = field(default_factory=dict)

    def handle(self, event: Event) -> None:
        """Record a trial's start, stage or end."""
        trial = self.record.find(event["trial"]) or self._new(event["trial"], event["point"])
        if event["event"] == "trial_start":
            trial.status = "running"
        if event["event"] == "trial_stage":
            self._stage(trial, event["stage"], event["trained"])
        if event.get("failed"):
            trial.message = event["failed"]
        if event["event"] == "trial_end":
            self._end(trial)
        self.record.save(self.folder)

    def _new(self, name: str, point: Point) -> TrialRecord:
        """Note a trial that was never heard of."""
        trial = TrialRecord(id=name, number=len(self.record.trials) + 1, point=point)
        try:
            trial.keys = [stage.key for stage in self.plan.plan(point).stages]
        except SpecError as error:
            trial.message = str(error)
        known = {key for one in self.record.trials for key in one.keys}
        self.record.stored += [key for key in trial.keys if key not in known and self.store.has(key)]
        self.record.trials.append(trial)
        return trial

    def _stage(self, trial: TrialRecord, done: int, trained: bool) -> None:
        """Read what a trial has finished from the store, also what an earlier driver did not live to record."""
        if not trial.keys:
            return
        opened = self._opened(trial)
        for stage in opened.plan.stages[len(trial.rows) : done]:
            self._replay(opened, stage.row, stage.key, trained and stage.stage == done)
            row = {name: None if math.isnan(v) else v for name, v in opened.matrix.summary(stage.row).items()}
            facts = {"stage": stage.stage, "task": stage.task, "key": stage.key}
            trial.rows.append(facts | {"trained": trained and stage.stage == done} | row)
            opened.tracker.row(opened.matrix, stage.row)
            self.terminal.stage(trial.number, trial.rows[-1], self.record.stages)

    def _opened(self, trial: TrialRecord) -> OpenTrial:
        """The trial's plan, matrix and MLflow run; what an earlier driver recorded is read back."""
        if trial.id not in self.opened:
            spec = self.plan.trial.spec(trial.point)
            plan = plan_of(spec, self.plan.tasks)
            uri, experiment = self.options.tracking, self.options.experiment
            tracker = Tracker(uri, experiment, f"{self.folder.name}-{trial.number:03d}", self.record.run_id or None)
            rows = [{"stage": stage.stage, "task": stage.task, "key": stage.key} for stage in plan.stages]
            trial.run_id = tracker.start(spec.model_dump(mode="json"), rows, trial.run_id or None)
            opened = OpenTrial(plan, tracker, AccuracyMatrix([task.name for task in self.plan.tasks]))
            self._scores(opened, 0)
            for row in trial.rows:
                self._replay(opened, plan.stages[row["stage"] - 1].row, row["key"], row["trained"])
            self.opened[trial.id] = opened
        return self.opened[trial.id]

    def _replay(self, opened: OpenTrial, row: int, key: str, trained: bool) -> None:
        """Hand a stored stage and its row of scores to MLflow and the matrix."""
        *steps, end = self.store.manifest(key).log
        stage = next(one.stage for one in opened.plan.stages if one.key == key)
        opened.tracker.handle(end | {"stage": stage, "cached": not trained, "log": steps})
        self._scores(opened, row)

    def _scores(self, opened: OpenTrial, row: int) -> None:
        for cell in opened.plan.cells_of(row):
            if self.store.has_scores(cell.key):
                scores = self.store.read_scores(cell.key)
                opened.matrix.set(row, cell.task, scores["score"])
                opened.tracker.handle({"event": "scores", "stage": row, "seen": cell.seen} | scores)

    def _end(self, trial: TrialRecord) -> None:
        """Close a trial: at its last stage, ended early by the scheduler, or failed."""
        whole = len(trial.rows) == self.record.stages
        trial.status = "failed" if trial.message else "finished" if whole else "stopped"
        if trial.keys:
            opened = self._opened(trial)
            opened.tracker.finish(opened.matrix, [], "FAILED" if trial.status == "failed" else "FINISHED")
        self.opened.pop(trial.id, None)
        self.terminal.ended(trial.number, trial.status, trial.message)

    def settle(self) -> None:
        """Close the trials that Tune knows nothing of: it may have lost the last seconds before a kill."""
        for trial in self.record.trials:
            if trial.status == "running":
                self._end(trial)

    def close(self, status: str) -> None:
        """End the MLflow runs of trials that are cut off."""
        for opened in self.opened.values():
            opened.tracker.finish(opened.matrix, [], status)
        self.opened.clear()
