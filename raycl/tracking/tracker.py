"""MLflow: one parent run per sequence, one child run per stage. The only module that knows MLflow.

The driver is the single writer; workers send it events and never open the database. MLflow is imported when a sequence
starts, because the import takes seconds. Tracking never stops the training: every call to MLflow goes through an
`Outbox`, which keeps calls in order through an outage and makes them once MLflow answers again.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from raycl.analysis.matrix import AccuracyMatrix
from raycl.errors import SpecError
from raycl.events import (
    Event,
    PlannedStage,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageStart,
    Status,
    Step,
)
from raycl.files import home
from raycl.tracking.outbox import Outbox
from raycl.tracking.records import RunRecord, as_name, end_metrics, flat, shared_tags, stage_params, step_metrics

log = logging.getLogger(__name__)
Json = dict[str, Any]

FLUSH_METRICS = 500
"""Metrics gathered before they are sent; MLflow takes at most 1000 in one call."""
FLUSH_SECONDS = 5.0
"""Longest time a metric waits for others before it is sent."""
BATCH_PARAMS = 100
"""Params MLflow takes in one call."""
LOCK_SECONDS = 60.0
"""Longest wait for another process that makes or migrates the same SQLite database."""
TRANSIENT = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"})
"""MLflow's error codes for what may pass by itself: no connection, a locked database, too many requests."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Lets the MLflow UI open an experiment on its training runs."""
ENVIRONMENT = {
    # MLflow's own retries take minutes; the outbox retries instead, without holding up the training.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # A training run sends nothing to third parties unless its user says so.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, where the user has not set them."""


def default_uri() -> str:
    """The tracking URI when none is given: MLFLOW_TRACKING_URI, else a database in RAYCL_HOME (~/.raycl)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def resolve_uri(uri: str | None) -> str:
    """`uri` (none = `default_uri`) with a SQLite path made absolute, so that it means the same in every folder."""
    uri = uri or default_uri()
    if "://" not in uri and uri != "databricks":
        raise SpecError(
            f"tracking URI {uri!r}: allowed are sqlite:///<file>, http(s)://<host>:<port>, and MLflow's others"
        )
    database = _sqlite_file(uri)
    return f"sqlite:///{database}" if database else uri


def mlflow_ui_command(uri: str) -> str:
    """The command line that opens the runs recorded under `uri` in a browser."""
    if urlsplit(uri).scheme in ("http", "https"):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


@dataclass(frozen=True)
class Resumed:
    """Where a run belongs among those that MLflow has already."""

    parent: str | None = None
    """Id of the run above it, a comparison's or a sweep's; none = it stands alone."""
    run_id: str | None = None
    """Id of the run to go on with; none = a new one."""


NEW_RUN = Resumed()


class _Runs:
    """A run and those below it, written through an outbox that calls MLflow in order."""

    def __init__(self, uri: str | None, experiment: str, run_name: str, resumed: Resumed = NEW_RUN) -> None:
        """`uri` none = `default_uri`; nothing is opened yet."""
        self.uri = resolve_uri(uri)
        self.experiment = experiment
        self.run_name = run_name
        self._resumed = resumed
        self._outbox = Outbox("MLflow", _passing)
        self._client: Any = None
        self._experiment_id = ""
        self._parent = RunRecord()

    @property
    def run_id(self) -> str:
        """The id of the run; empty until MLflow has answered."""
        return self._parent.id

    def _open_parent(self, tags: Mapping[str, str]) -> None:
        """Connect, then resume the run or make one."""
        self._client, self._experiment_id = connect(self.uri, self.experiment)
        parent, run_id = self._resumed.parent, self._resumed.run_id
        if run_id and _exists(self._client, run_id):
            self._resume(self._parent, run_id)
            return
        tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        self._parent.id = self._client.create_run(self._experiment_id, tags=tags, run_name=self.run_name).info.run_id

    def _resume(self, run: RunRecord, run_id: str) -> None:
        """Go on with an existing run; it keeps its points."""
        self._client.update_run(run_id, status="RUNNING")
        for key in self._client.get_run(run_id).data.metrics:
            run.points |= {(key, point.step) for point in self._client.get_metric_history(run_id, key)}
        run.id = run_id

    def _end(self, run: RunRecord, status: str) -> None:
        """Send what waits and close a run, once."""
        self._send(run)
        if not run.ended:
            run.ended = True
            self._call("the end of a run", run, lambda run_id: self._client.set_terminated(run_id, status))

    def _params(self, run: RunRecord, params: Mapping[str, str]) -> None:
        self._call("the params of a run", run, lambda run_id: self._log_params(run_id, params))

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Add the params a run does not have yet. MLflow's params never change: another value is a warning.

        A choice per stage, `method.l1[2]`, becomes `method.l1.2`: MLflow's names have no brackets.
        """
        from mlflow.entities import Param

        params = {name.replace("[", ".").replace("]", ""): value for name, value in params.items()}
        known = self._client.get_run(run_id).data.params
        changed = sorted(name for name, value in params.items() if known.get(name, value) != value)
        if changed:
            log.warning("MLflow: resumed run %s keeps its first value of %s", run_id, ", ".join(changed))
        new = [Param(name, value) for name, value in params.items() if name not in known]
        for first in range(0, len(new), BATCH_PARAMS):
            self._client.log_batch(run_id, params=new[first : first + BATCH_PARAMS])

    def _add(self, run: RunRecord, values: Mapping[str, float], step: int) -> None:
        """Put the metrics that are defined into the run's buffer and send it when it is large or old enough."""
        now = int(time.time() * 1000)
        run.buffer += [(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)]
        if len(run.buffer) >= FLUSH_METRICS or time.monotonic() - run.sent >= FLUSH_SECONDS:
            self._send(run)

    def _send(self, run: RunRecord) -> None:
        """Hand the run's buffer to the outbox."""
        batch, run.buffer, run.sent = run.buffer, [], time.monotonic()
        for first in range(0, len(batch), FLUSH_METRICS):
            part = batch[first : first + FLUSH_METRICS]
            self._call("a batch of metrics", run, lambda _, part=part: self._log_metrics(run, part))

    def _log_metrics(self, run: RunRecord, batch: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        new = {(key, step): Metric(key, value, at, step) for key, value, at, step in batch}
        new = {point: metric for point, metric in new.items() if point not in run.points}
        if new:
            self._client.log_batch(run.id, metrics=list(new.values()))
        run.points |= new.keys()

    def _call(self, what: str, run: RunRecord, call: Callable[[str], object]) -> None:
        """Send `call(run id)` to the outbox; calls of a run that could not be opened are void."""
        self._outbox.send(what, lambda: call(run.id) if run.id else None)

    def _close(self, artifacts: Iterable[Path], runs: Iterable[RunRecord], status: str) -> None:
        """Record the files, close the runs, and make every call that still waits."""
        for path in artifacts:
            self._call(path.name, self._parent, lambda run, path=path: self._client.log_artifact(run, str(path)))
        for run in runs:
            self._end(run, status)
        self._outbox.flush(now=True)
        if self._outbox.undelivered:
            log.warning("MLflow: no answer until the end, %d records are lost", self._outbox.undelivered)


class Tracker(_Runs):
    """A listener that writes one sequence to MLflow: a run for it, and one below it for each stage."""

    def __init__(self, uri: str | None, experiment: str, run_name: str, resumed: Resumed = NEW_RUN) -> None:
        """`uri` none = `default_uri`; nothing is opened before the sequence starts."""
        super().__init__(uri, experiment, run_name, resumed)
        self.artifacts: Sequence[Path] = ()
        """Files that the run keeps; read when the sequence ends."""
        self._spec: Json = {}
        self._plan: dict[int, PlannedStage] = {}
        self._children: dict[int, RunRecord] = {}

    def handle(self, event: Event) -> None:
        """Record one event; `Phase` has no place in MLflow and is passed over."""
        match event:
            case SequenceStart():
                self._start(event)
            case StageStart():
                self._params(self._child(event.stage), {"steps": str(event.steps)})
            case Step():
                self._add(self._child(event.stage), step_metrics(event), event.step)
            case StageEnd():
                self._end_stage(event)
            case Scored():
                self._add(self._parent, {f"acc/{as_name(event.task)}": event.score}, event.stage)
            case RowDone():
                self._add(self._parent, event.measures, event.stage)
                self._send(self._parent)
            case SequenceEnd():
                self._end_sequence(event)

    def _start(self, event: SequenceStart) -> None:
        """Open the run, or resume it, and record the spec."""
        self._spec, self._plan = event.spec, {stage.stage: stage for stage in event.stages}
        tags = {"raycl.kind": "sequence", "raycl.stages": str(len(event.spec["tasks"])), **shared_tags(event.spec)}
        self._outbox.send("the run of the sequence", lambda: self._open_parent(tags))
        self._params(self._parent, flat(event.spec))
        self._call("spec.json", self._parent, lambda run: self._client.log_dict(run, event.spec, "spec.json"))

    def _end_sequence(self, event: SequenceEnd) -> None:
        """Record the matrix as a table and the artifacts, and close every run."""
        table = (AccuracyMatrix.from_json(event.matrix).to_csv() or "", "tables/accuracy_matrix.csv")
        self._call("the accuracy matrix", self._parent, lambda run: self._client.log_text(run, *table))
        self._close(self.artifacts, (*self._children.values(), self._parent), event.status)

    # --- runs --------------------------------------------------------------------------------------------------------

    def _child(self, stage: int) -> RunRecord:
        """The run of a stage, opened at its first event."""
        if stage not in self._children:
            self._children[stage] = child = RunRecord()
            task = self._spec["tasks"][stage - 1]
            self._call(f"the run of stage {stage}", self._parent, lambda _: self._open_child(child, stage, task))
            self._params(child, stage_params(self._spec, self._plan.get(stage), stage))
        return self._children[stage]

    def _open_child(self, child: RunRecord, stage: int, task: str) -> None:
        """Resume the parent's run of this stage or make one."""
        where = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`raycl.stage` = '{stage}'"
        found = self._client.search_runs([self._experiment_id], where, max_results=1)
        if found:
            self._resume(child, found[0].info.run_id)
            return
        tags = {"mlflow.parentRunId": self.run_id, "raycl.kind": "stage", "raycl.stage": str(stage), "raycl.task": task}
        name = f"{stage:02d} {task}"
        child.id = self._client.create_run(
            self._experiment_id, tags=tags | shared_tags(self._spec), run_name=name
        ).info.run_id

    def _end_stage(self, event: StageEnd) -> None:
        """Record a stage's log (where it comes along), durations, gauges and key, and close its run."""
        child = self._child(event.stage)
        for step in event.log:
            self._add(child, step_metrics(step), step.step)
        self._add(child, end_metrics(event), event.stage)
        for tag, value in (("raycl.key", event.key), ("raycl.cached", str(event.cached).lower())):
            self._call(f"tag {tag}", child, lambda run, tag=tag, value=value: self._client.set_tag(run, tag, value))
        self._end(child, "FINISHED")


class GroupTracker(_Runs):
    """Writes the run above many sequences, a comparison's or a sweep's: `start`, then `finish`.

    The sequences' own runs name it as their parent: `Resumed(parent=group.run_id)`.
    """

    def start(self, kind: str, settings: Json) -> str:
        """Open the run, or resume it, and record the settings; returns the run's id (empty in an outage).

        `kind` is the tag `raycl.kind`: comparison, sweep.
        """
        self._outbox.send(f"the run of the {kind}", lambda: self._open_parent({"raycl.kind": kind}))
        self._params(self._parent, flat(settings))
        self._call("settings.json", self._parent, lambda run: self._client.log_dict(run, settings, "settings.json"))
        return self.run_id

    def finish(
        self, metrics: Mapping[str, float], step: int, artifacts: Iterable[Path], status: Status = "FINISHED"
    ) -> None:
        """Record the metrics at `step` (undefined ones are left out; a step is written once) and the files; close it."""
        named = {"/".join(map(as_name, name.split("/"))): value for name, value in metrics.items()}
        self._add(self._parent, named, step)
        self._close(artifacts, [self._parent], status)


# --- MLflow's side -------------------------------------------------------------------------------------------------


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """A client and the experiment's id; a missing database or experiment is made, by one process at a time."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = _sqlite_file(uri)
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that migrate one SQLite file at once fail with "duplicate column".
    with FileLock(f"{database}.lock", timeout=LOCK_SECONDS) if database else nullcontext():
        client = MlflowClient(tracking_uri=uri)
        folder = (database.parent / "mlartifacts").as_uri() if database else None
        return client, _experiment(client, experiment, folder)


def _experiment(client: Any, name: str, artifact_folder: str | None) -> str:
    """The id of the experiment `name`: found, brought back if it was deleted, or made."""
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_folder, tags=EXPERIMENT_TAGS)
        except MlflowException:  # on a server, another driver may have made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _exists(client: Any, run_id: str) -> bool:
    """Whether a run can be resumed; a run that is gone is replaced by a new one."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        log.warning("MLflow: run %s is not there any more, a new one is made", run_id)
        return False


def _passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "error_code", None) in TRANSIENT


def _sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's database; none for other URIs."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
