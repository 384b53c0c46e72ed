"""Ray Train, and only here: run a sequence in a worker group, all remaining stages in one warm group."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.queue import Empty, Queue

from raycl.cluster import beside_driver, capacity, cluster_gpus, nodes, start_cluster
from raycl.errors import DivergedError, LostError, UserError, first_line
from raycl.events import Retry, StageEvent
from raycl.files import home
from raycl.sequence.history import in_store
from raycl.sequence.job import SentJob, SequenceJob
from raycl.sequence.plan import StagePlan
from raycl.sequence.watch import watch
from raycl.sequence.worker import Report, SequenceWorker
from raycl.state.store import Store
from raycl.train.workers import Workers, cores, set_threads

GROUP_RESTARTS = 2
"""How often a group whose worker died is started again; finished stages are in the store and stay."""
AHEAD_SECONDS = 60.0
"""How long groups that trained ahead may take to end once all is in the store."""
OF_RAY = {
    "TrainController": "Ray Train's controller",
    "_QueueActor": "the queue of events",
    "RayTrainWorker": "a worker",
}
"""Actor of Ray's -> what it is to a sequence."""
DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
"""Ends of a process that are nobody's defect."""
logger = logging.getLogger("raycl")


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
class Nested:
    """A group that belongs to a trial: it is not started again when a worker dies."""

    threads: int
    """CPU threads of each worker."""
    started: Callable[[PlacementGroup], None]
    """Takes what `end_group` needs."""


def run_group(job: SequenceJob, workers: int, report: Report, nested: Nested | None = None) -> None:
    """Run all that the store lacks in `workers` Ray Train workers, and hand every event to `report` in this process.

    Further groups train ahead of it, as many of the job's `groups` as find room. Each worker gets the machine's cores shared
    out as CPU threads, unless it is `nested`. Raises what a worker raises.
    """
    start_cluster()
    sent = ray.put(SentJob.of(job))
    queue = Queue(actor_options=beside_driver())
    groups = 1 if nested else groups_at_once(job, workers)
    threads = nested.threads if nested else threads_per_worker(workers * -(-groups // len(nodes())))
    config = {"job": sent, "threads": threads, "nested": nested is not None, "ahead": False, "queue": queue}
    config["patience"] = job.spec.train.patience
    stood: list[str] = []

    def handle(message: Message) -> None:
        if isinstance(message, Standstill):
            stood.append(message.words)
        elif isinstance(message, GroupStart):
            if nested is not None and message.group is not None:
                nested.started(message.group)
        else:
            report(replace(message, reason=stood[0]) if isinstance(message, Retry) and stood else message)
            if isinstance(message, Retry):
                stood.clear()

    try:
        scaling = _scaling(workers, threads, nested is not None, groups)
        with _pump(queue, handle), _ahead(config, scaling, job.store, groups - 1):
            _fit(config, scaling, job.store)
    finally:
        queue.shutdown(force=True)


def threads_per_worker(workers: int) -> int:
    """CPU threads per worker: the cores this process may use, shared out. The same number for every group of this size,
    since it touches results in the last bits."""
    return max(1, cores() // max(1, workers))


def groups_at_once(job: SequenceJob, workers: int) -> int:
    """How many groups work on a job at the same time: as many as it asks for, has stages to train, and find room on the
    cluster at hand, which is started if there is none."""
    if job.spec.groups == 1:
        return 1
    start_cluster()
    need = {"GPU": 1} if cluster_gpus() else {"CPU": 1}
    missing = sum(not job.store.has(stage.key) for stage in job.plan.stages)
    return max(1, min(job.spec.groups, missing, capacity(nodes(), need, workers)))


def _scaling(workers: int, threads: int, nested: bool, groups: int) -> ScalingConfig:
    """What a worker asks of the cluster."""
    if cluster_gpus():
        return ScalingConfig(num_workers=workers, use_gpu=True)
    if nested:
        return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": threads})
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return ScalingConfig(
        num_workers=workers, resources_per_worker={"CPU": max(1, min(threads, cpus // (workers * groups)))}
    )


@contextlib.contextmanager
def _ahead(config: dict[str, Any], scaling: ScalingConfig, store: Store, groups: int) -> Iterator[None]:
    """Further groups that train ahead while the body runs. One that fails is no failure: the body trains what it left."""

    def run() -> None:
        try:
            _fit({**config, "ahead": True}, scaling, store)
        except Exception as error:
            logger.warning("a group that trained ahead has ended (%s); the others go on", _why(_cause(error)))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(groups)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(AHEAD_SECONDS)


def _fit(config: dict[str, Any], scaling: ScalingConfig, store: Store) -> None:
    """One `TorchTrainer.fit` for all remaining stages. Every call has a name of its own: a reused name would append."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    run = RunConfig(
        name=f"sequence-{uuid.uuid4().hex[:12]}",
        storage_path=_records(store),
        failure_config=FailureConfig(max_failures=0 if config["nested"] else GROUP_RESTARTS),
        callbacks=[] if config["nested"] else [FailureNotes(config["queue"])],
    )
    try:
        result = TorchTrainer(_train_loop, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    except (TrainingFailedError, RayActorError) as error:
        raise _users_error(error) or _lost(error, store) or error from None
    except SystemExit:  # how Ray Train ends a run that was interrupted from the keyboard
        raise KeyboardInterrupt from None
    if isinstance(result.return_value, UserError):
        raise result.return_value


def _records(store: Store) -> str:
    """Where Ray Train keeps its own records, which all nodes must see: of several nodes, the store is what they share."""
    shared = "://" in store.uri or len(nodes()) > 1
    return f"{store.uri.rstrip('/')}/ray" if shared else str(home() / "ray")


class FailureNotes(UserCallback):
    """Tells the driver of each failure of the group after which Ray Train starts it again; lives in Ray's own process."""

    def __init__(self, queue: Queue) -> None:
        """`queue` takes a `Retry` for each."""
        self._queue, self._failures = queue, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called once for each failure, with what ended the workers by rank."""
        self._failures += 1
        if self._failures <= GROUP_RESTARTS:
            causes = [_cause(error) for error in worker_exceptions.values()] or [RuntimeError("no reason is known")]
            self._queue.put(Retry(_why(causes[0]), self._failures, GROUP_RESTARTS))


def _cause(failure: Any) -> BaseException:
    """The error that a worker raised, without what Ray Train put around it."""
    return getattr(failure, "_base_exc", failure)


def _why(error: BaseException) -> str:
    """An error as one line with its kind."""
    return f"{type(error).__name__}: {first_line(error)}"


def end_group(group: PlacementGroup) -> None:
    """Kill the workers of a nested group and give back what they hold; its run ends with an error.

    Ray keeps the resources of a group whose owner is killed until the whole job ends, or until an actor of Ray Train's that
    needs the dashboard frees them.
    """
    remove_placement_group(group)


def _users_error(error: Exception) -> UserError | None:
    """The error behind a failed group that the user can mend, if it was one."""
    return next((cause for cause in _causes(error) if isinstance(cause, UserError)), None)


def _causes(error: Exception) -> list[BaseException]:
    """What ended a group: the errors of its workers, or of the process that steers them."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    return [_cause(failure) for failure in failures if failure is not None] or [error]


def _lost(error: Exception, store: Store) -> LostError | None:
    """One line for a group that ended because a process died; none if it was another reason."""
    causes = _causes(error)
    if not all(isinstance(cause, DEATHS) for cause in causes):
        return None
    found = re.search(r"class_name: (\w+)", str(causes[0]))
    who = OF_RAY.get(found[1], "a process") if found else "a worker process"
    return LostError(
        f"{who} of the sequence has died ({first_line(causes[0])}); {in_store(store)}; next step: the same command goes on "
        "from there. If processes die again, look for too little memory (`raycl plan` estimates it) and at the nodes (`ray "
        "status`)"
    )


def _train_loop(config: dict[str, Any]) -> UserError | None:
    """What Ray Train calls on every worker. Returns an error that the user must mend: to start the group again is no use.

    So it is with all that the start-up finds, on whichever worker, and with a loss that diverges on all of them. Else the
    others of several workers may wait for the one with the error, so it is raised and ends the group.
    """
    context = ray.train.get_context()
    set_threads(config["threads"])
    rank, queue = context.get_world_rank(), config["queue"]
    if config["nested"] and rank == 0:
        queue.put(GroupStart(get_current_placement_group()))
    workers = Workers(rank, context.get_world_size(), str(get_device()))
    worker, refused = _started(ray.get(config["job"]), workers, queue.put if rank == 0 else lambda event: None)
    if worker is None or refused:
        return refused
    try:
        # The start-up is not watched: to fetch a large model or to build ops takes what it takes.
        with watch(config["patience"], lambda words: _end(queue, f"worker {rank} of {workers.world}: {words}")) as beat:
            worker.watched(beat)
            if config["ahead"]:
                worker.run_ahead()
            else:
                worker.run(lambda stage: _report_stage(worker.store, stage, rank))
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


def _started(sent: SentJob, workers: Workers, report: Report) -> tuple[SequenceWorker | None, UserError | None]:
    """A worker, started up together with the others of its group; the first error of theirs that the user must mend."""
    worker, found = None, None
    try:
        worker = SequenceWorker(sent.open(), workers, report)
    except UserError as error:
        found = error
    if refused := _first(workers, found):
        return None, refused
    return worker, _refused(worker) if worker else None


def _refused(worker: SequenceWorker) -> UserError | None:
    """Start a worker up; the first error of its group's that the user must mend."""
    try:
        worker.job.store.check_usable()
        worker.start_up_for_rest()
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


@contextlib.contextmanager
def _pump(queue: Queue, handle: Callable[[Message], None]) -> Iterator[None]:
    """Hand events on while the group runs, and the rest of them at the end."""
    done = threading.Event()

    def drain() -> None:
        while True:
            try:
                if done.is_set() and queue.empty():
                    return
                handle(queue.get(timeout=0.5))
            except Empty:
                continue
            except RayActorError:  # the queue has died, and the group with it, which says so
                return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        time.sleep(0.1)
        done.set()
        thread.join(timeout=30)
