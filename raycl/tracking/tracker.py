"""What raycl records in MLflow: one parent run per sequence with one child run per stage, one run above many sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.routing import measures
from raycl.events import (
    Dataset,
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
from raycl.files import Json
from raycl.tracking.models import log_model
from raycl.tracking.records import (
    About,
    RunRecord,
    as_name,
    end_metrics,
    flat,
    sequence_note,
    shared_tags,
    stage_params,
    step_metrics,
)
from raycl.tracking.runs import NEW_RUN, Resumed, Runs


class Tracker(Runs):
    """A listener that writes one sequence to MLflow: a run for it, and one below it for each stage."""

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        run_name: str,
        resumed: Resumed = NEW_RUN,
        opened: Callable[[str], None] = lambda run_id: None,
    ) -> None:
        """`uri` none = `default_uri`; nothing is opened before the sequence starts. `opened` is told the run's id."""
        super().__init__(uri, experiment, run_name, resumed, opened)
        self.artifacts: Sequence[Path] = ()
        """Files that the run keeps; read when the sequence ends."""
        self._spec: Json = {}
        self._plan: dict[int, PlannedStage] = {}
        self._children: dict[int, RunRecord] = {}
        self._data: tuple[Dataset, ...] = ()

    def handle(self, event: Event) -> None:
        """Record one event; `Phase` and `Adapted` have no place in MLflow and are passed over."""
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
                further = {f"acc/{as_name(event.task)}/{as_name(name)}": value for name, value in event.further.items()}
                self._add(self._parent, {f"acc/{as_name(event.task)}": event.score, **further}, event.stage)
                self._signs(self._parent, f"/{event.stage} {as_name(event.task)}", event.health)
            case RowDone():
                routing = measures(event.routing) if event.routing else {}
                self._add(self._parent, {**event.measures, **routing}, event.stage)
                self._send(self._parent)
            case SequenceEnd():
                self._end_sequence(event)

    def _signs(self, of: RunRecord, name: str, signs: Sequence[str]) -> None:
        """Tag a run with the signs that something went wrong, if there are any."""
        if signs:
            tag = f"raycl.health{name}", " ".join(signs)
            self._call("a sign", of, lambda run: self._client.set_tag(run, *tag))

    def _start(self, event: SequenceStart) -> None:
        """Open the run, or resume it, and record the spec."""
        self._spec, self._plan = event.spec, {stage.stage: stage for stage in event.stages}
        tags = {"raycl.kind": "sequence", "raycl.stages": str(len(event.spec["tasks"])), **shared_tags(event.spec)}
        tags |= About(sequence_note(event), event.environment).tags
        self._data = event.data
        self._open("the run of the sequence", tags)
        self._params(self._parent, flat(event.spec))
        self._inputs(self._parent, event.data)
        self._call("spec.json", self._parent, lambda run: self._client.log_dict(run, event.spec, "spec.json"))

    def _end_sequence(self, event: SequenceEnd) -> None:
        """Record the matrix as a table, the model and the artifacts, and close every run.

        How the last row is routed is told again: a row from the store may have come before what it is compared with.
        """
        if event.routing is not None:
            self._add(self._parent, measures(event.routing), len(event.routing.tasks))
        table = (AccuracyMatrix.from_json(event.matrix).to_csv() or "", "tables/accuracy_matrix.csv")
        self._call("the accuracy matrix", self._parent, lambda run: self._client.log_text(run, *table))
        if "stage_keys" in event.facts:
            self._call("the model", self._parent, lambda run: log_model(self._client, run, self._spec, event.facts))
        self._close(self.artifacts, (*self._children.values(), self._parent), event.status)

    # --- runs --------------------------------------------------------------------------------------------------------

    def _child(self, stage: int) -> RunRecord:
        """The run of a stage, opened at its first event."""
        if stage not in self._children:
            self._children[stage] = child = RunRecord()
            tasks = self._tasks(stage)
            task = self._plan[stage].task if stage in self._plan else "+".join(tasks)
            self._call(f"the run of stage {stage}", self._parent, lambda _: self._open_child(child, stage, task))
            self._params(child, stage_params(self._spec, self._plan.get(stage), stage))
            self._inputs(child, [one for one in self._data if one.split == "train" and one.task in tasks])
        return self._children[stage]

    def _tasks(self, stage: int) -> list[str]:
        """The tasks that a stage trains on: its own, or all of them where one stage is the whole sequence."""
        return self._spec["tasks"] if len(self._plan) == 1 else [self._spec["tasks"][stage - 1]]

    def _open_child(self, child: RunRecord, stage: int, task: str) -> None:
        """Resume the parent's run of this stage or make one."""
        where = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`raycl.stage` = '{stage}'"
        found = self._client.search_runs([self._experiment_id], where, max_results=1)
        if found:
            self._resume(child, found[0].info.run_id)
            return
        tags = {"mlflow.parentRunId": self.run_id, "raycl.kind": "stage", "raycl.stage": str(stage), "raycl.task": task}
        tags |= shared_tags(self._spec) | self._experiment_tag
        name = f"{stage:02d} {task} · {self.run_name}"
        child.id = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id

    def _end_stage(self, event: StageEnd) -> None:
        """Record a stage's log (where it comes along), durations, gauges and key, and close its run."""
        child = self._child(event.stage)
        for step in event.log:
            self._add(child, step_metrics(step), step.step)
        self._add(child, end_metrics(event), event.stage)
        for tag, value in (("raycl.key", event.key), ("raycl.cached", str(event.cached).lower())):
            self._call(f"tag {tag}", child, lambda run, tag=tag, value=value: self._client.set_tag(run, tag, value))
        self._signs(child, "", event.health)
        self._end(child, "FINISHED")


class GroupTracker(Runs):
    """Writes the run above many sequences, a comparison's or a sweep's: `start`, then `finish`.

    The sequences' own runs name it as their parent: `Resumed(parent=group.run_id)`.
    """

    def start(self, settings: Json, about: About) -> str:
        """Open the run, or resume it, and record the settings; returns the run's id, which its sequences name (empty in an
        outage)."""
        kind = self._resumed.part_of
        self._open(f"the run of the {kind}", {"raycl.kind": kind, **about.tags})
        self._params(self._parent, flat(settings))
        self._call("settings.json", self._parent, lambda run: self._client.log_dict(run, settings, "settings.json"))
        self.wait()
        return self.run_id

    def finish(
        self, metrics: Mapping[str, float], step: int, artifacts: Iterable[Path], status: Status = "FINISHED"
    ) -> None:
        """Record the metrics at `step` (undefined ones are left out; a step is written once) and the files; close it."""
        named = {"/".join(map(as_name, name.split("/"))): value for name, value in metrics.items()}
        self._add(self._parent, named, step)
        self._close(artifacts, [self._parent], status)
