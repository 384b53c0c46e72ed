"""The driver of a sequence: plan it, show what is stored, run what is missing, record everything. Holds no tensor."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raycl.home import home
from raycl.metrics import AccuracyMatrix
from raycl.models import fingerprint
from raycl.report.terminal import Terminal
from raycl.run.plan import Plan, make_plan, stage_tasks
from raycl.run.preflight import check_model, check_output, check_states, check_workers
from raycl.spec import RunSpec
from raycl.state.environment import describe_environment
from raycl.state.keys import content_key
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task
from raycl.tracking import Tracker, mlflow_ui_command

Event = dict[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Where a sequence reads and writes; none of it enters a key."""

    store: str | None = None
    """Folder or URI of the stage store; none = `store` in raycl's home folder."""
    tracking: str | None = None
    """MLflow tracking URI; none = an SQLite file in raycl's home folder."""
    experiment: str = "raycl"
    output: str | None = None
    """Folder for matrix, plots and spec; none = a folder under `runs` in raycl's home folder."""


@dataclass
class SequenceResult:
    """What a finished sequence leaves."""

    matrix: AccuracyMatrix
    plan: Plan
    outputs: dict[str, Path]
    trained: list[int]
    """The stages this call trained, the rest was stored."""


def run_sequence(spec: RunSpec, options: Options, terminal: Terminal) -> SequenceResult:
    """Run a sequence to its end, or show it if it is finished.

    Raises UserError before anything is started if the data, the model, the store or the machine do not fit.
    """
    if spec.workers is not None:
        check_workers(spec, spec.workers)
    folder = Path(options.output).resolve() if options.output else home() / "runs" / run_name(spec)
    tracker = Tracker(options.tracking, options.experiment, folder.name)
    tasks = load_tasks(spec.tasks, spec.data)
    plan = make_plan(spec, tasks, fingerprint(spec.model))
    check_output(folder)
    store = Store(options.store or str(home() / "store"))
    store.check_usable()
    missing = Missing.of(plan, store)
    if missing:
        check_model(spec)
        check_states(plan, store, missing.stages, missing.cells)
    driver = Driver(spec, plan, tasks, store, tracker, terminal, folder)
    with terminal:
        return driver.run(missing)


def run_name(spec: RunSpec) -> str:
    """A readable name that two different specs never share."""
    order = spec.order if "," not in spec.order else f"custom-{len(spec.tasks)}"
    over = getattr(spec.method, "over", None)
    method = f"{spec.method.name}-{over}" if over else spec.method.name
    short = content_key({"spec": spec.model_dump(mode="json", exclude={"workers"})})[:8]
    return f"{order.replace(':', '-')}-{method}-seed{spec.seed}-{short}"


@dataclass(frozen=True)
class Missing:
    """What the store lacks of a plan."""

    stages: frozenset[int]
    cells: frozenset[str]

    @classmethod
    def of(cls, plan: Plan, store: Store) -> Missing:
        """Look every key up."""
        return cls(
            frozenset(stage.stage for stage in plan.stages if not store.has(stage.key)),
            frozenset(cell.key for cell in plan.cells if not store.has_scores(cell.key)),
        )

    def __bool__(self) -> bool:
        return bool(self.stages or self.cells)


@dataclass
class Driver:
    """Turns events, live or replayed from the store, into matrix, terminal and MLflow."""

    spec: RunSpec
    plan: Plan
    tasks: list[Task]
    store: Store
    tracker: Tracker
    terminal: Terminal
    folder: Path
    heard: set[str] = field(default_factory=set)
    """Keys of stages and cells whose results are recorded."""
    recording: bool = True
    """Whether MLflow hears of the events."""

    def run(self, missing: Missing) -> SequenceResult:
        """Replay what is stored, run what is missing, finish. A finished sequence that is recorded is only shown."""
        started = time.time()
        self.matrix = AccuracyMatrix([task.name for task in self.tasks])
        rows = self._plan_rows(missing)
        self.terminal.plan(rows)
        recorded = self._recorded()
        if not missing and recorded.get("finished"):
            self.recording = False
            self._replay(live=False)
            return self._show([], {name: self.folder / name for name in recorded["finished"]})
        self._start_tracking(rows, recorded.get("run_id"))
        try:
            self._replay(live=False)
            if missing:
                self._run_missing()
                self._replay(live=True)
        except BaseException:
            self.tracker.finish(self.matrix, [], "FAILED")
            raise
        return self._finish(sorted(missing.stages), time.time() - started)

    def _run_missing(self) -> None:
        """Start workers for what is missing. Ray is imported only here, so a stored sequence answers at once."""
        from raycl.run.cluster import default_workers
        from raycl.run.host import run_workers

        workers = default_workers() if self.spec.workers is None else self.spec.workers
        check_workers(self.spec, workers)
        environment = describe_environment(Path(__file__).parents[2])
        run_workers(self.spec, self.plan, self.tasks, self.store, workers, environment, self.handle)

    def handle(self, event: Event) -> None:
        """Record one event."""
        self.terminal.handle(event)
        if self.recording:
            self.tracker.handle(event)
        if event["event"] == "stage_end":
            self.heard.add(event["key"])
        if event["event"] == "scores":
            self._score(event)

    def _score(self, event: Event) -> None:
        """Put a score into the matrix, wherever the same state meets the task; show and record a row once it is whole."""
        stage = event["stage"]
        cells = self.plan.cells_of(stage)
        key = next(cell.key for cell in cells if cell.task == event["task"])
        for cell in self.plan.cells:
            if cell.key == key:
                self.matrix.set(cell.stage, cell.task, event["score"])
        self.heard.add(key)
        if stage and all(cell.key in self.heard for cell in cells):
            self.terminal.row(self.matrix, stage)
            if self.recording:
                self.tracker.row(self.matrix, stage)

    def _replay(self, live: bool) -> None:
        """Hand on what the store holds and nobody has reported: earlier runs' results, or a lost worker's last words."""
        self._replay_row(0)
        for stage in self.plan.stages:
            self._replay_stage(stage.key, cached=not live)
            self._replay_row(stage.row)

    def _replay_row(self, row: int) -> None:
        for cell in self.plan.cells_of(row):
            if cell.key not in self.heard and self.store.has_scores(cell.key):
                record = self.store.read_scores(cell.key)
                self.handle({"event": "scores", "stage": row, "seen": cell.seen} | record)

    def _replay_stage(self, key: str, cached: bool) -> None:
        if key in self.heard or not self.store.has(key):
            return
        *steps, end = self.store.manifest(key).log
        self.handle(end | {"cached": cached, "log": steps})

    def _plan_rows(self, missing: Missing) -> list[Json]:
        return [
            {
                "stage": stage.stage,
                "task": stage.task,
                "key": stage.key,
                "stored": stage.stage not in missing.stages,
                "train": len(task.train),
                "test": len(task.test),
            }
            for stage, task in zip(self.plan.stages, stage_tasks(self.spec, self.tasks), strict=True)
        ]

    def _recorded(self) -> Json:
        """What an earlier call of the same spec recorded under the same tracking URI: run id, and files if it finished."""
        if not self._memory.is_file():
            return {}
        known = json.loads(self._memory.read_text(encoding="utf-8"))
        files = all((self.folder / name).is_file() for name in known.get("finished") or [])
        return known if known.get("uri") == self.tracker.uri and files else {}

    @property
    def _memory(self) -> Path:
        return self.folder / "mlflow_run.json"

    def _start_tracking(self, rows: list[Json], run_id: str | None) -> None:
        """Open the sequence's MLflow run, or take up the one an earlier call opened."""
        self._remember(self.tracker.start(self.spec.model_dump(mode="json"), rows, run_id), None)

    def _remember(self, run_id: str, finished: list[str] | None) -> None:
        """Note which MLflow run holds this sequence, and the output files once it is finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"uri": self.tracker.uri, "run_id": run_id, "finished": finished}
        self._memory.write_text(json.dumps(values), encoding="utf-8")

    def _finish(self, trained: list[int], seconds: float) -> SequenceResult:
        extra = {
            "seconds": seconds,
            "trained_stages": trained,
            "stage_keys": [stage.key for stage in self.plan.stages],
            "data": {task.name: task.record for task in self.tasks},
        }
        from raycl.report.files import write_outputs  # draws figures, which takes a second to import

        outputs = write_outputs(self.folder, self.matrix, self.spec.model_dump(mode="json"), extra)
        self.tracker.finish(self.matrix, list(outputs.values()), "FINISHED")
        self._remember(self.tracker.run_id, list(outputs))
        return self._show(trained, outputs)

    def _show(self, trained: list[int], outputs: dict[str, Path]) -> SequenceResult:
        """Print the end of a sequence."""
        last = self.plan.stages[-1].key
        paths = {"outputs": str(self.folder), "last stage": self.store.folder(last), "store": self.store.uri}
        self.terminal.summary(self.matrix, paths, mlflow_ui_command(self.tracker.uri))
        return SequenceResult(self.matrix, self.plan, outputs, trained)
