"""Ray Train, and only here: run a sequence in a worker group, all remaining stages in one warm group."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Empty, Queue

from raycl.cluster import beside_driver, capacity, cluster_gpus, nodes, start_cluster
from raycl.errors import LostError, SpecError, UserError, first_line
from raycl.events import Retry
from raycl.files import home
from raycl.sequence.group_trainer import GroupTrainer
from raycl.sequence.group_worker import GroupPart, GroupStart, Message, Standstill, run_worker
from raycl.sequence.history import in_store
from raycl.sequence.job import SentJob, SequenceJob
from raycl.sequence.worker import Report
from raycl.state.store import Store
from raycl.train.workers import cores

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
class Nested:
    """A group that belongs to a trial: it is not started again when a worker dies."""

    threads: int
    """CPU threads of each worker."""
    started: Callable[[PlacementGroup], None]
    """Takes what `end_group` needs."""


def run_group(job: SequenceJob, workers: int, report: Report, nested: Nested | None = None) -> None:
    """Run all that the store lacks in `workers` Ray Train workers, and hand every event to `report` in this process.

    Further groups train ahead of it, as many of the job's `groups` as find room, and where the job has workers that score,
    those do that in a group of their own. Each worker gets the machine's cores shared
    out as CPU threads, unless it is `nested`. Raises what a worker raises.
    """
    start_cluster()
    sent = ray.put(SentJob.of(job))
    queue = Queue(actor_options=beside_driver())
    crowd = Crowd(workers) if nested else Crowd(workers, groups_at_once(job, workers), job.spec.eval.workers)
    threads = nested.threads if nested else threads_per_worker(crowd.on_one_of(len(nodes())))
    part = GroupPart(sent, "all", threads, job.spec.train.patience, queue, nested is not None)
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
        scaling = _scaling(workers, part, crowd)
        with _pump(queue, handle), _ahead(part, scaling, job.store, crowd.groups - 1):
            if crowd.scorers:
                _fit_beside(_scaling(crowd.scorers, part, crowd), part, scaling, job.store)
            else:
                _fit(part, scaling, job.store)
    finally:
        queue.shutdown(force=True)


@dataclass(frozen=True)
class Crowd:
    """All workers of a sequence at the same time."""

    workers: int
    """Of a group."""
    groups: int = 1
    """That train."""
    scorers: int = 0
    """Workers that only score."""

    @property
    def size(self) -> int:
        """How many there are."""
        return self.workers * self.groups + self.scorers

    def on_one_of(self, machines: int) -> int:
        """How many the fullest of so many machines has, if they are spread evenly."""
        return self.workers * -(-self.groups // machines) + -(-self.scorers // machines)


def check_room(job: SequenceJob, workers: int) -> None:
    """Workers that score need room beside a group that trains. Raises SpecError with how much there is."""
    if not job.spec.eval.workers:
        return
    start_cluster()
    room, wanted = capacity(nodes(), _need()), Crowd(workers, 1, job.spec.eval.workers).size
    if wanted > room:
        kind = "GPUs" if cluster_gpus() else "CPUs"
        raise SpecError(
            f"eval.workers: {job.spec.eval.workers} workers that score and {workers} that train need {wanted} {kind}, and "
            f"the cluster has {room}; next step: take fewer with --eval-workers or --workers, or leave --eval-workers out"
        )


def _need() -> dict[str, float]:
    """What a worker needs at least."""
    return {"GPU": 1} if cluster_gpus() else {"CPU": 1}


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
    missing = sum(not job.store.has(stage.key) for stage in job.plan.stages)
    room = capacity(nodes(), _need()) - job.spec.eval.workers
    return max(1, min(job.spec.groups, missing, room // workers))


def _scaling(workers: int, part: GroupPart, crowd: Crowd) -> ScalingConfig:
    """What a group of so many workers, one of a crowd, asks of the cluster."""
    if cluster_gpus():
        return ScalingConfig(num_workers=workers, use_gpu=True)
    if part.nested:
        return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": part.threads})
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return ScalingConfig(
        num_workers=workers, resources_per_worker={"CPU": max(1, min(part.threads, cpus // crowd.size))}
    )


def _fit_beside(scorers: ScalingConfig, part: GroupPart, scaling: ScalingConfig, store: Store) -> None:
    """Train in one group while another one scores. What it leaves, if it fails, the one that trained scores in the end."""

    def score() -> None:
        try:
            _fit(replace(part, role="scores"), scorers, store)
            done.append(True)
        except Exception as error:
            if not failed.is_set():
                why = _why(_cause(error))
                logger.warning("the workers that score have ended (%s); what is left is scored in the end", why)

    done: list[bool] = []
    failed = threading.Event()
    thread = threading.Thread(target=score, daemon=True)
    thread.start()
    try:
        _fit(replace(part, role="trains"), scaling, store)
    except BaseException:
        failed.set()  # which ends the workers that score, too
        raise
    thread.join()
    if not done:
        _fit(part, scaling, store)


@contextlib.contextmanager
def _ahead(part: GroupPart, scaling: ScalingConfig, store: Store, groups: int) -> Iterator[None]:
    """Further groups that train ahead while the body runs. One that fails is no failure: the body trains what it left."""

    def run() -> None:
        try:
            _fit(replace(part, role="ahead"), scaling, store)
        except Exception as error:
            logger.warning("a group that trained ahead has ended (%s); the others go on", _why(_cause(error)))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(groups)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(AHEAD_SECONDS)


def _fit(part: GroupPart, scaling: ScalingConfig, store: Store) -> None:
    """One `fit` for a group's whole part. Every call has a name of its own: a reused name would append."""
    alone = part.nested or part.role == "scores"
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    run = RunConfig(
        name=f"sequence-{uuid.uuid4().hex[:12]}",
        storage_path=_records(store),
        failure_config=FailureConfig(max_failures=0 if alone else GROUP_RESTARTS),
        callbacks=[] if alone else [FailureNotes(part.queue)],
    )
    try:
        result = GroupTrainer(
            run_worker, train_loop_config={"part": part}, scaling_config=scaling, run_config=run
        ).fit()
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
