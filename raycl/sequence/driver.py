"""The driver of a sequence: plan it, show what is stored, run what is missing, let listeners record it. Holds no tensor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.views import RunView
from raycl.events import Event, Listener, Routing, SequenceEnd, SequenceStart, StageEvent, Status, status_of
from raycl.files import Json, home
from raycl.report.files import OutputFiles
from raycl.report.terminal import Terminal
from raycl.sequence.chronicle import Chronicle
from raycl.sequence.history import Missing
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.local import run_here
from raycl.sequence.names import run_name, run_title
from raycl.sequence.plan import Plan
from raycl.sequence.preflight import (
    OnDrift,
    check_eval_workers,
    check_groups,
    check_output,
    check_states,
    check_workers,
    settle_drift,
)
from raycl.spec import RunSpec
from raycl.state.store import Store
from raycl.tracking.memory import RunMemory
from raycl.tracking.runs import NEW_RUN, Resumed
from raycl.tracking.server import OFF
from raycl.tracking.tracker import Tracker
from raycl.train.workers import local_device

log = logging.getLogger(__name__)
Run = Callable[[SequenceJob, int, Callable[[StageEvent], None]], None]
"""Runs what the store lacks of a job in so many workers, and hands every event on."""


@dataclass(frozen=True)
class Host:
    """Who runs a sequence."""

    run: Run
    workers: int
    """0 = this process."""
    device: str
    """What it runs on, for people."""


NOBODY = Host(run_here, 0, "none: all is in the store")


@dataclass(frozen=True)
class Options:
    """Where a sequence reads and writes; none of it enters a key."""

    store: str | None = None
    """Folder or URI of the stage store; none = `store` in raycl's home folder."""
    tracking: str | None = None
    """MLflow tracking URI, `off` = record nothing there; none = an SQLite file in raycl's home folder."""
    experiment: str = "raycl"
    """MLflow experiment."""
    output: str | None = None
    """Folder for matrix, plots and spec; none = a folder under `runs` in raycl's home folder."""
    on_drift: OnDrift = "fail"
    """What becomes of stored stages whose parent was made again and came out otherwise."""

    def place(self) -> Store:
        """The store; nothing is read or made yet."""
        return Store(self.store or str(home() / "store"))

    def open_store(self) -> Store:
        """The store, found usable. Raises StoreError if it cannot be read or written."""
        store = self.place()
        store.check_usable()
        return store

    def folder(self, room: str, name: str) -> Path:
        """The output folder, made: `output`, or `name` under `room` in raycl's home. Raises SpecError if it cannot be."""
        folder = Path(self.output).resolve() if self.output else home() / room / name
        check_output(folder)
        return folder


@dataclass
class SequenceResult:
    """What a finished sequence leaves."""

    matrix: AccuracyMatrix
    plan: Plan
    outputs: dict[str, Path]
    """Name -> file in the output folder."""
    trained: list[int]
    """The stages this call trained, the rest was stored."""


def run_sequence(
    spec: RunSpec, options: Options | None = None, listeners: Sequence[Listener] | None = None
) -> SequenceResult:
    """Run a sequence to its end, or show it if it is finished.

    `listeners` none = the terminal; output files and MLflow hear of it too. Raises UserError before anything is started if
    the data, the model, the store or the machine do not fit.
    """
    options = options or Options()
    return run_job(plan_job(spec, options), options, listeners)


def plan_job(spec: RunSpec, options: Options) -> SequenceJob:
    """A sequence with its data read and its keys known; nothing is started. Raises UserError for what cannot be run."""
    check_groups(spec)
    check_eval_workers(spec)
    if spec.workers is not None:
        check_workers(spec, spec.workers)
    return make_job(spec, options.place())


def run_job(job: SequenceJob, options: Options, listeners: Sequence[Listener] | None = None) -> SequenceResult:
    """The same for a sequence that is planned; its store counts, not that of `options`."""
    folder = options.folder("runs", run_name(job.spec))
    records = Records(job, options, folder)
    job.store.check_usable()
    settle_drift(job.plan, job.store, options.on_drift)
    missing = Missing.of(job.plan, job.store)
    host = _host(job, missing) if missing else NOBODY
    heard = [*([Terminal()] if listeners is None else listeners), *([records] if missing or not records.whole else [])]
    chronicle = Chronicle(job, heard)
    started = time.time()
    chronicle.start(missing, {"device": host.device, "store": job.store.uri, "output": str(folder)})
    try:
        chronicle.catch_up()
        if missing:
            host.run(job, host.workers, chronicle.handle)
            chronicle.catch_up(cached=False)
    except BaseException as error:
        chronicle.end(status_of(error))
        raise
    trained = sorted(missing.stages)
    facts = _facts(job, trained, time.time() - started)
    if chronicle.trained_at is not None:
        facts["seconds_after_training"] = time.time() - chronicle.trained_at
    chronicle.end("FINISHED", facts, records.places)
    return SequenceResult(chronicle.matrix, job.plan, records.files, trained)


def record_sequence(
    job: SequenceJob, options: Options, folder: Path, label: str | None = None, above: Resumed = NEW_RUN
) -> bool:
    """Let output files and MLflow hear of a sequence that is finished in the store, as far as they have not.

    Whether all of it is recorded then. `label` is its method's in MLflow, none = its name; `above` says what the sequence is
    a part of.
    """
    check_output(folder)
    records = Records(job, options, folder, label, above)
    if records.whole:
        return True
    chronicle = Chronicle(job, [records])
    chronicle.start(Missing(), {"store": job.store.uri, "output": str(folder)})
    chronicle.catch_up()
    chronicle.end("FINISHED", _facts(job, [], 0.0), records.places)
    return bool(records.whole)


def _facts(job: SequenceJob, trained: list[int], seconds: float) -> Json:
    """What summary.json says beside the measures; `trained` are the stages that this call made."""
    return {
        "seconds": seconds,
        "trained_stages": trained,
        "stage_keys": [stage.key for stage in job.plan.stages],
        "store": job.store.uri,
        "data": {task.name: task.record for task in job.tasks},
    }


def _host(job: SequenceJob, missing: Missing) -> Host:
    """Who does the work, after a look at all that can be wrong. Raises UserError."""
    check_states(job.plan, job.store, missing.stages, missing.cells)
    if job.spec.workers == 0:
        return Host(run_here, 0, f"{local_device()}, in this process")
    from raycl.cluster import cluster_gpus, default_workers  # brings Ray, which a stored or local sequence does without
    from raycl.sequence.group import check_room, groups_at_once, run_group

    workers = job.spec.workers or default_workers()
    check_workers(job.spec, workers)
    kind = "GPU" if cluster_gpus() else "CPU"
    check_room(job, workers)
    groups = groups_at_once(job, workers)
    each = f"{workers} Ray Train {'worker' if workers == 1 else 'workers'}"
    apart = job.spec.eval.workers
    scorers = f", and {apart} that only {'scores' if apart == 1 else 'score'}" if apart else ""
    return Host(run_group, workers, f"{kind}, {f'{groups} groups of ' if groups > 1 else ''}{each}{scorers}")


class Records:
    """What lasts of a sequence, output files and MLflow, as one listener; and what it remembers of earlier calls."""

    def __init__(
        self,
        job: SequenceJob,
        options: Options,
        folder: Path,
        label: str | None = None,
        above: Resumed = NEW_RUN,
    ) -> None:
        """`label` is the method's in MLflow, none = its name; `above` says what the sequence is a part of."""
        self._job, self._folder, self._above = job, folder, above
        self._memory = RunMemory(folder, options.tracking)
        self._files = OutputFiles(folder, self._view)
        self._title = run_title(job.spec, label)
        self._where = (options.tracking, options.experiment)
        self._tracker = self._new_tracker()

    def _new_tracker(self, uri: str | None = None) -> Tracker:
        tracking, experiment = self._where
        resumed = replace(self._above, run_id=self._memory.run_id, mark=self._memory.mark)
        return Tracker(uri or tracking, experiment, self._title, resumed, opened=self._memory.remember)

    def handle(self, event: Event) -> None:
        """Write the files, then MLflow, which keeps them; then note what is recorded."""
        if isinstance(event, SequenceStart):
            self._begin()
        self._files.handle(event)
        if isinstance(event, SequenceEnd):
            self._tracker.artifacts = list(self._files.written.values())
        self._tracker.handle(event)
        if isinstance(event, SequenceEnd):
            self._end(event.status)

    def _begin(self) -> None:
        """Record from here on, if no other process does."""
        mine = self._memory.claim()
        self._tracker = self._new_tracker(None if mine else OFF)
        if not mine:
            log.warning("%s: another process records this run in MLflow, this one only runs it", self._folder)

    def _end(self, status: Status) -> None:
        if status == "FINISHED" and self._tracker.recorded:
            self._memory.remember(self._tracker.run_id, list(self._files.written))
        self._memory.release()

    def _view(self, routing: Routing | None) -> RunView:
        """What the sequence's page shows."""
        from raycl.sequence.answers import run_view  # brings what draws, which a machine that only trains does without

        return run_view(self._job, routing)

    @property
    def files(self) -> dict[str, Path]:
        """Name -> output file, of this call or of the earlier one that was recorded to its end."""
        return dict(self._files.written) or self.whole

    @property
    def whole(self) -> dict[str, Path]:
        """Name -> output file of a call that came to its end and was recorded; empty if there is none."""
        paths = {name: self._folder / name for name in self._memory.finished or []}
        return paths if all(path.is_file() for path in paths.values()) else {}

    @property
    def places(self) -> dict[str, str]:
        """What to look at -> where it is. MLflow's is told where it has the run, which is waited for."""
        self._tracker.wait()
        last = self._job.plan.stages[-1].key
        return {
            "outputs": str(self._folder),
            "last stage": self._job.store.folder(last),
            "store": self._job.store.uri,
            **self._tracker.places,
        }
