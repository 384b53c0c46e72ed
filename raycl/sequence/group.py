"""Ray, and only here: run a sequence's worker loop in a Ray Train worker group, or in this process (local mode)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.queue import Empty, Queue

from raycl.cluster import attach, cluster_gpus
from raycl.errors import SetupError, UserError
from raycl.files import home
from raycl.methods.registry import method_params
from raycl.sequence.plan import Plan, StagePlan
from raycl.sequence.worker import SequenceWorker
from raycl.spec import RunSpec, parse
from raycl.state.store import Store
from raycl.tasks.task import Task
from raycl.train.workers import Workers, cores, set_threads

Event = dict[str, Any]
Handle = Callable[[Event], None]

RETRIES = 2
"""How often a group whose worker died is started again; finished stages are in the store and stay."""


def run_workers(
    spec: RunSpec,
    plan: Plan,
    tasks: list[Task],
    store: Store,
    workers: int,
    environment: dict[str, Any],
    handle: Handle,
    threads: int | None = None,
    nested: bool = False,
) -> None:
    """Run all that the store lacks, and hand every event to `handle` in this process.

    `workers` = 0 runs the very same loop in this process, without a cluster. `threads` is the number of CPU threads of each
    worker (none = the machine's cores shared out). A `nested` group belongs to a trial: it is not started again when a
    worker dies, and its first event is `group`, with what `end_group` takes. Raises what the loop raises.
    """
    config: dict[str, Any] = {
        "spec": spec.model_dump(mode="json"),
        "plan": plan.to_json(),
        "store": store.uri,
        "environment": environment,
        "threads": threads or _threads(workers),
        "nested": nested,
    }
    if workers == 0:
        _fit(config | {"tasks": tasks, "emit": handle}, ScalingConfig(num_workers=0), store)
        return
    start_cluster()
    queue = Queue(actor_options={"num_cpus": 0})
    try:
        with _pump(queue, handle):
            _fit(config | {"tasks": ray.put(tasks), "emit": queue}, _scaling(workers, threads), store)
    finally:
        queue.shutdown(force=True)


def start_cluster() -> None:
    """Attach to a cluster, or start one for this run without a dashboard.

    Ray gives a new node 30 s, which a busy laptop can exceed: a second try follows. Raises SetupError after it.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    # A worker's report waits until Ray Train has looked at the one before, by default every 2 s: longer than a short stage.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if attach():
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    for last in (False, True):
        try:
            ray.init(address="local", include_dashboard=False, **quiet)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            if last:
                raise SetupError(
                    "Ray did not start within a minute: the machine is too busy, or out of memory. Run the same command "
                    "again, or run without Ray's worker processes: --workers 0"
                ) from error
            ray.shutdown()


def _threads(workers: int) -> int:
    """CPU threads per worker: the cores this process may use, shared out. The same number in every host, since it touches
    results."""
    return max(1, cores() // max(1, workers))


def _scaling(workers: int, threads: int | None = None) -> ScalingConfig:
    """What a worker asks of the cluster."""
    if cluster_gpus():
        return ScalingConfig(num_workers=workers, use_gpu=True)
    if threads:
        return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": threads})
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return ScalingConfig(
        num_workers=workers, resources_per_worker={"CPU": max(1, min(_threads(workers), cpus // workers))}
    )


def _fit(config: dict[str, Any], scaling: ScalingConfig, store: Store) -> None:
    """One `TorchTrainer.fit` for all remaining stages. Every call has a name of its own: a reused name would append."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    run = RunConfig(
        name=f"sequence-{uuid.uuid4().hex[:12]}",
        storage_path=f"{store.uri.rstrip('/')}/ray" if "://" in store.uri else str(home() / "ray"),
        failure_config=FailureConfig(max_failures=RETRIES if scaling.num_workers and not config["nested"] else 0),
    )
    try:
        result = TorchTrainer(_train_loop, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    except TrainingFailedError as error:
        raise _users_error(error) or error from None
    except SystemExit:  # how Ray Train ends a run that was interrupted from the keyboard
        raise KeyboardInterrupt from None
    if isinstance(result.return_value, UserError):
        raise result.return_value


def end_group(group: PlacementGroup) -> None:
    """Kill the workers of a nested group and give back what they hold; its run ends with an error.

    Ray keeps the resources of a group whose owner is killed until the whole job ends, or until an actor of Ray Train's that
    needs the dashboard frees them.
    """
    remove_placement_group(group)


def _users_error(error: TrainingFailedError) -> UserError | None:
    """The error behind a failed group that the user can mend, if it was one."""
    failures = getattr(error, "worker_failures", {}).values()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    return next((cause for cause in causes if isinstance(cause, UserError)), None)


def _train_loop(config: dict[str, Any]) -> UserError | None:
    """What Ray Train calls on every worker. Returns an error that the user must mend: to start the group again is no use.

    Of several workers the others may wait for this one, so there the error is raised and ends the group.
    """
    context = ray.train.get_context()
    set_threads(config["threads"])
    emit, tasks = config["emit"], config["tasks"]
    if isinstance(emit, Queue):
        tasks = ray.get(tasks)
    rank = context.get_world_rank()
    if config["nested"] and rank == 0:
        emit.put({"event": "group", "group": get_current_placement_group()})
    worker = SequenceWorker(
        spec=parse(config["spec"], method_params),
        plan=Plan.from_json(config["plan"]),
        tasks=tasks,
        store=Store(config["store"]),
        workers=Workers(rank, context.get_world_size(), str(get_device())),
        report=_reporter(emit, rank),
        environment=config["environment"],
    )
    try:
        worker.store.check_usable()
        worker.run(lambda stage: _report_stage(worker.store, stage, rank))
    except UserError as error:
        if worker.workers.world > 1:
            raise
        return error
    return None


def _reporter(emit: Queue | Handle, rank: int) -> Handle:
    """Rank 0 sends events to the driver; the others keep silent."""
    if rank != 0:
        return lambda event: None
    return emit.put if isinstance(emit, Queue) else emit


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
def _pump(queue: Queue, handle: Handle) -> Iterator[None]:
    """Hand events on while the group runs, and the rest of them at the end."""
    done = threading.Event()

    def drain() -> None:
        while not done.is_set() or not queue.empty():
            try:
                handle(queue.get(timeout=0.5))
            except Empty:
                continue

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        time.sleep(0.1)
        done.set()
        thread.join(timeout=30)
