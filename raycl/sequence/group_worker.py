"""What Ray Train calls on every worker of a group, and what a worker tells the driver. Beside group.py, which starts it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
from ray.train import Checkpoint
from ray.train.torch import get_device
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.queue import Queue

from raycl.errors import DivergedError, UserError
from raycl.events import StageEvent
from raycl.sequence.job import SentJob
from raycl.sequence.plan import StagePlan
from raycl.sequence.roles import Role, play
from raycl.sequence.watch import watch
from raycl.sequence.worker import Report, SequenceWorker
from raycl.state.store import Store
from raycl.train.workers import Workers, set_threads


@dataclass(frozen=True)
class GroupStart:
    """The first message of a nested group: what `end_group` takes."""

    group: PlacementGroup | None
    """None where Ray Train has placed the workers outside a group: then there is nothing to end."""


@dataclass(frozen=True)
class Standstill:
    """The last message of a worker in which nothing has moved on for too long, and which ends itself."""

    words: str


Message = StageEvent | GroupStart | Standstill


@dataclass(frozen=True)
class GroupPart:
    """What a group does, and what its workers need for it."""

    job: ray.ObjectRef[SentJob]
    """The sequence, among Ray's objects."""
    role: Role
    threads: int
    """CPU threads of each worker."""
    patience: float
    """Seconds without any progress after which a worker ends itself; 0 = never."""
    queue: Queue
    """Takes messages; it ends with the driver's run."""
    nested: bool = False
    """Whether the group belongs to a trial."""


def run_worker(config: dict[str, GroupPart]) -> UserError | None:
    """What Ray Train calls on every worker. Returns an error that the user must mend: to start the group again is no use.

    So it is with all that the start-up finds, on whichever worker, and with a loss that diverges on all of them. Else the
    others of several workers may wait for the one with the error, so it is raised and ends the group.
    """
    context, part = ray.train.get_context(), config["part"]
    set_threads(part.threads)
    rank, queue = context.get_world_rank(), part.queue
    if part.nested and rank == 0:
        queue.put(GroupStart(get_current_placement_group()))
    workers = Workers(rank, context.get_world_size(), str(get_device()))
    worker, refused = _started(part, workers, queue.put if rank == 0 else lambda event: None)
    if worker is None or refused:
        return refused
    try:
        # The start-up is not watched: to fetch a large model or to build ops takes what it takes.
        with watch(part.patience, lambda words: _end(queue, f"worker {rank} of {workers.world}: {words}")) as beat:
            worker.watched(beat)
            play(part.role, worker, lambda stage: _report_stage(worker.store, stage, rank), queue.empty)
    except UserError as error:
        if workers.world > 1 and not isinstance(error, DivergedError):
            raise
        return error
    return None


def _end(queue: Queue, words: str) -> None:
    """Say why, and end this process: Ray Train then starts the group again."""
    with contextlib.suppress(Exception):
        queue.put(Standstill(words), timeout=10)
    os._exit(1)


def _started(part: GroupPart, workers: Workers, report: Report) -> tuple[SequenceWorker | None, UserError | None]:
    """A worker, started up together with the others of its group; the first error of theirs that the user must mend."""
    worker, found = None, None
    try:
        worker = SequenceWorker(ray.get(part.job).open(), workers, report)
    except UserError as error:
        found = error
    if refused := _first(workers, found):
        return None, refused
    return worker, _refused(worker, part.role) if worker else None


def _refused(worker: SequenceWorker, role: Role) -> UserError | None:
    """Start a worker up; the first error of its group's that the user must mend."""
    try:
        worker.job.store.check_usable()
        worker.start_up_for_rest(trains=role != "scores")
        found = None
    except UserError as error:
        found = error
    return _first(worker.workers, found)


def _first(workers: Workers, found: UserError | None) -> UserError | None:
    """The first error of a group's workers, each with its own or none."""
    return next((one for one in workers.gather(found) if one), None)


def _report_stage(store: Store, stage: StagePlan, rank: int) -> None:
    """Tell Ray Train that a stage is done. Its checkpoint is a pointer: the state itself is in the store already."""
    metrics = {"stage": stage.stage, "key": stage.key}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        pointer = {"key": stage.key, "store": store.uri, "folder": store.folder(stage.key)}
        (Path(folder) / "stage.json").write_text(json.dumps(pointer), encoding="utf-8")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
