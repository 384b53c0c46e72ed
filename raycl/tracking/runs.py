"""A run of MLflow and those below it, written through an outbox that keeps calls in order through an outage.

The driver is the single writer; workers send it events and never open the database. Tracking never stops the training:
every call to MLflow goes through an `Outbox`, which makes it beside the training once MLflow answers. A later process may
make all of them again: runs are found by their mark, points by metric and step, all else overwrites.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from raycl.events import Dataset
from raycl.tracking.outbox import LONGEST_WAIT_SECONDS, PATIENCE_SECONDS, ClosedOutbox, Outbox
from raycl.tracking.records import RunRecord
from raycl.tracking.server import (
    OFF,
    connect,
    exists,
    find_marked,
    is_local,
    load_client,
    mlflow_ui_command,
    passing,
    resolve_uri,
)

log = logging.getLogger(__name__)
FLUSH_METRICS = 500
"""Metrics gathered before they are sent; MLflow takes at most 1000 in one call."""
FLUSH_SECONDS = 5.0
"""Longest time a metric waits for others before it is sent."""
DIGEST = 36
"""Characters of a dataset's digest that MLflow takes."""
MARK = "raycl.mark"
"""The tag by which a run is found again whose id nobody noted."""
LATER = "`raycl sync`, or the same command again, records them"
BATCH_PARAMS = 100
"""Params MLflow takes in one call."""


@dataclass(frozen=True)
class Resumed:
    """Where a run belongs among those that MLflow has already."""

    parent: str | None = None
    """Id of the run above it, a comparison's or a sweep's; none = it stands alone."""
    run_id: str | None = None
    """Id of the run to go on with; none = the one with the mark, or a new one."""
    mark: str = ""
    """What tells the run from all others, and is known before it has an id; empty = nobody asks for it again."""
    part_of: Literal["sequence", "sweep", "comparison"] = "sequence"
    """What was asked for, of which the run is all or a part: the tag `raycl.experiment`."""


NEW_RUN = Resumed()


@cache
def outbox_for(uri: str) -> Outbox:
    """The outbox of this process for a tracking URI."""
    if uri == OFF:
        return ClosedOutbox("MLflow", passing)
    return Outbox("MLflow", passing, LONGEST_WAIT_SECONDS if is_local(uri) else PATIENCE_SECONDS)


class Runs:
    """A run and those below it, written through an outbox that calls MLflow in order."""

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        run_name: str,
        resumed: Resumed = NEW_RUN,
        opened: Callable[[str], None] = lambda run_id: None,
    ) -> None:
        """`uri` none = `default_uri`, `off` = record nothing; nothing is opened yet. `opened` is told the run's id."""
        self.uri = resolve_uri(uri)
        self.experiment = experiment
        self.run_name = run_name
        self._resumed, self._opened = resumed, opened
        self._outbox = outbox_for(self.uri)
        self._client: Any = None
        self._experiment_id = ""
        self._parent = RunRecord()

    @property
    def run_id(self) -> str:
        """The id of the run; empty until MLflow has answered."""
        return self._parent.id

    @property
    def recorded(self) -> bool:
        """Whether MLflow has all that it was told; also where it is told nothing."""
        return self.uri == OFF or bool(self.run_id and not self._outbox.undelivered)

    def wait(self) -> bool:
        """Wait, within bounds, until MLflow has what it was told so far; whether it has."""
        return self._outbox.wait()

    @property
    def places(self) -> dict[str, str]:
        """`MLflow` -> the command that opens the runs in a browser; empty where no call has recorded any."""
        return {"MLflow": mlflow_ui_command(self.uri)} if self.run_id or self._resumed.run_id else {}

    def _open(self, what: str, tags: Mapping[str, str]) -> None:
        """Have the run opened, whose name in warnings is `what`."""
        if self.uri != OFF:
            load_client()
        self._outbox.send(what, lambda: self._open_parent(tags))

    def _open_parent(self, tags: Mapping[str, str]) -> None:
        """Connect, then resume the run or make one."""
        self._client, self._experiment_id = connect(self.uri, self.experiment)
        parent, run_id, mark = self._resumed.parent, self._resumed.run_id, self._resumed.mark
        if not (run_id and exists(self._client, run_id)):
            run_id = find_marked(self._client, self._experiment_id, MARK, mark) if mark else None
        if run_id:
            self._resume(self._parent, run_id)
        else:
            tags = {**tags, **self._experiment_tag, **({"mlflow.parentRunId": parent} if parent else {})}
            tags |= {MARK: mark} if mark else {}
            made = self._client.create_run(self._experiment_id, tags=tags, run_name=self.run_name)
            self._parent.id = made.info.run_id
        self._opened(self.run_id)

    @property
    def _experiment_tag(self) -> dict[str, str]:
        return {"raycl.experiment": self._resumed.part_of}

    def _inputs(self, run: RunRecord, datasets: Sequence[Dataset]) -> None:
        self._call("the data of a run", run, lambda run_id: self._log_inputs(run_id, datasets))

    def _log_inputs(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        """Name the data that a run reads; MLflow keeps each once, also where a run is gone on with."""
        from mlflow.entities import Dataset as Named
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for one in datasets:
            source, rows = json.dumps(one.source, ensure_ascii=False), json.dumps({"num_rows": one.rows})
            named = Named(f"{one.task} ({one.split})", one.digest[:DIGEST], "raycl", source, profile=rows)
            context = "training" if one.split == "train" else "testing"
            inputs.append(DatasetInput(named, [InputTag("mlflow.data.context", context)]))
        if inputs:
            self._client.log_inputs(run_id, inputs)

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
        changed = [
            f"{name} {known[name]} (now {value})" for name, value in params.items() if known.get(name, value) != value
        ]
        if changed:
            log.warning(
                "MLflow: run %s is gone on with, and its params stay those it was begun with: %s; spec.json has today's",
                run_id,
                ", ".join(sorted(changed)),
            )
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
        if not self.wait():
            log.warning("MLflow: %d records are not there yet; %s", self._outbox.undelivered, LATER)
