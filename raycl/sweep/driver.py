"""Records a sweep while it runs: what Tune reports becomes the record, MLflow runs and lines on the terminal. No Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raycl.errors import SpecError
from raycl.events import Status
from raycl.files import finite
from raycl.report.sweeps import SweepTerminal
from raycl.sequence.chronicle import Chronicle
from raycl.sequence.driver import Options
from raycl.sequence.history import Missing
from raycl.sequence.names import run_title
from raycl.sequence.plan import StagePlan
from raycl.state.store import Store
from raycl.sweep.events import TrialEnd, TrialEvent, TrialStage, TrialStart
from raycl.sweep.plan import SweepPlan
from raycl.sweep.record import SweepRecord, TrialRecord
from raycl.sweep.spaces import Point
from raycl.tracking.runs import Resumed
from raycl.tracking.tracker import Tracker


@dataclass
class SweepDriver:
    """Turns what Tune reports into the record, MLflow and lines on the terminal. The only writer of all three."""

    plan: SweepPlan
    record: SweepRecord
    store: Store
    folder: Path
    options: Options
    terminal: SweepTerminal
    opened: dict[str, Chronicle] = field(default_factory=dict)
    """The trials that run, by id."""
    notes: set[str] = field(default_factory=set)
    """What trials have said."""

    def handle(self, event: TrialEvent) -> None:
        """Record a trial's start, stage or end."""
        trial = self.record.find(event.trial) or self._new(event.trial, event.point)
        match event:
            case TrialStart():
                trial.status = "running"
            case TrialStage():
                self._stage(trial, event.stage, event.trained)
                self._note(event.note)
                trial.message = event.failed or trial.message
            case TrialEnd():
                trial.message = event.failed or trial.message
                self._end(trial)
        self.record.save(self.folder)

    def _note(self, text: str) -> None:
        """Print what a trial says, the first time."""
        if text and text not in self.notes:
            self.notes.add(text)
            self.terminal.note(text)

    def _new(self, name: str, point: Point) -> TrialRecord:
        """Note a trial that was never heard of."""
        trial = TrialRecord(id=name, number=len(self.record.trials) + 1, point=point)
        try:
            trial.keys = [stage.key for stage in self.plan.job(point).plan.stages]
        except SpecError as error:
            trial.message = str(error)
        if self.plan.points is None:  # else the record knows from its start what was stored before
            known = {key for one in self.record.trials for key in one.keys}
            self.record.stored += [key for key in trial.keys if key not in known and self.store.has(key)]
        self.record.trials.append(trial)
        return trial

    def _stage(self, trial: TrialRecord, done: int, trained: bool) -> None:
        """Read what a trial has finished from the store, also what an earlier driver did not live to record."""
        if not trial.keys:
            return
        chronicle = self._opened(trial)
        for stage in chronicle.job.plan.stages[len(trial.rows) : done]:
            mine = trained and stage.stage == done
            chronicle.catch_up_stage(stage, cached=not mine)
            if stage.stage == len(trial.keys):
                chronicle.catch_up()
            trial.rows.append(_row(chronicle, stage, mine))
            self.terminal.stage(trial.number, trial.rows[-1], self.record.stages)

    def _opened(self, trial: TrialRecord) -> Chronicle:
        """The trial's chronicle, which writes its MLflow run; what an earlier driver recorded is read back."""
        if trial.id not in self.opened:
            uri, experiment = self.options.tracking, self.options.experiment
            mark = f"{self.record.mark}/{trial.id}"
            resumed = Resumed(self.record.run_id or None, trial.run_id or None, mark, part_of="sweep")
            job = self.plan.job(trial.point)
            tracker = Tracker(uri, experiment, run_title(job.spec, trial.words), resumed, trial.opened)
            chronicle = Chronicle(job, [tracker])
            places = {"store": self.store.uri, "output": str(self.folder)}
            chronicle.start(Missing.of(chronicle.job.plan, self.store), places)
            for row in trial.rows:
                chronicle.catch_up_stage(chronicle.job.plan.stages[row["stage"] - 1], cached=not row["trained"])
            self.opened[trial.id] = chronicle
        return self.opened[trial.id]

    def _end(self, trial: TrialRecord) -> None:
        """Close a trial: at its last stage, ended early by the scheduler, or failed."""
        whole = len(trial.rows) == self.record.stages
        trial.status = "failed" if trial.message else "finished" if whole else "stopped"
        if trial.keys:
            self._opened(trial).end("FAILED" if trial.status == "failed" else "FINISHED")
        self.opened.pop(trial.id, None)
        self.terminal.ended(trial.number, trial.status, trial.message)

    def settle(self) -> None:
        """Close the trials that Tune knows nothing of: it may have lost the last seconds before a kill."""
        for trial in self.record.trials:
            if trial.status == "running":
                self._end(trial)

    def close(self, status: Status) -> None:
        """End the MLflow runs of trials that are cut off."""
        for chronicle in self.opened.values():
            chronicle.end(status)
        self.opened.clear()


def _row(chronicle: Chronicle, stage: StagePlan, trained: bool) -> dict[str, object]:
    """What the record says of a finished stage; null = undefined."""
    facts = {"stage": stage.stage, "task": stage.task, "key": stage.key, "trained": trained}
    return facts | finite(chronicle.matrix.summary(stage.row))
