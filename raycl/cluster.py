"""The Ray cluster at hand: attach to it or start it, count what it holds, share it out. All of it is computed here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycl.errors import SetupError

OWN = "RAYCL_OWN_CLUSTER"
"""In the environment of a cluster that a run started for itself: the id of the run's process. Its processes inherit it."""
CONNECT_SECONDS = 5.0
"""Longest wait for a connection to a cluster."""


def attach() -> bool:
    """Connect to the cluster of RAY_ADDRESS, or to the one `ray start` made here. Returns whether there is one.

    A cluster that another program started for itself is left alone: it ends with that program. Raises SetupError if
    RAY_ADDRESS names a cluster that does not answer.
    """
    if joined():
        return True
    named, address = os.environ.get("RAY_ADDRESS"), address_at_hand()
    if not address:
        return False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as error:
        if named:
            raise SetupError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there. Start it (`ray start --head`), or unset RAY_ADDRESS"
            ) from error
        return False
    if os.environ.get(OWN) == str(os.getpid()):  # of a cluster that this process has started before, and ended
        del os.environ[OWN]
    return True


def started_here() -> str | None:
    """The address that `ray start` noted on this machine, which may be stale; none if it noted none.

    Ray has no public way to ask for it: `ray.init()` starts a cluster where there is none, and `address="auto"` also joins a
    cluster that another program started for itself.
    """
    from ray._private.services import find_bootstrap_address

    return find_bootstrap_address(None)


def joined() -> bool:
    """Whether this process is connected to a cluster."""
    return ray.is_initialized()


def is_own() -> bool:
    """Whether the cluster at hand is one of a run's own: one node, without a dashboard, that ends with the run."""
    return bool(os.environ.get(OWN))


def address_at_hand() -> str | None:
    """The address of the cluster that a run would join; none where it would start one."""
    return os.environ.get("RAY_ADDRESS") or started_here()


def answers(address: str) -> bool:
    """Whether somebody takes a connection at an address of Ray's, `host:port` or `ray://host:port`; who, is not asked.

    Ray itself gives up after a minute or more. An address without a port (`auto`) is taken to answer.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def token_mode() -> str:
    """How this process would show that it may use a cluster, in words."""
    said = os.environ.get("RAY_AUTH_MODE")
    if said is not None:
        return f"RAY_AUTH_MODE={said}"
    return "tokens as Ray's default is (RAY_AUTH_MODE is not set)"


def beside_driver() -> dict[str, object]:
    """Options of an actor that lives as long as this process: without a CPU, on its node. On another one it would end with
    that node, and take the run along."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def on_each_node(call: Callable[[], object], seconds: float) -> dict[str, object]:
    """What `call`, which must be importable on every node, gives on each node of the cluster at hand, or the error there."""
    found = {}
    task = ray.remote(num_cpus=0, max_retries=0)(lambda: call())
    asked = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer, timeout=seconds)
        except Exception as error:  # a task's own error, or Ray's for a node that is gone
            found[node] = error
    return found


def cluster_gpus() -> int:
    """GPUs of the cluster at hand; without one, of this machine."""
    if attach():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def default_workers() -> int:
    """One worker per GPU, or one on CPU."""
    return max(1, cluster_gpus())


def start_cluster() -> None:
    """Attach to a cluster, or start one for this run without a dashboard.

    Ray gives a new node 30 s, which a busy laptop can exceed: a second try follows. Raises SetupError after it.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    # A worker's report waits until Ray Train has looked at the one before, by default every 2 s: longer than a short stage.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray's niceness of 15 starves workers on a busy laptop; a cluster that somebody else started keeps its own.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if attach():
        return
    os.environ[OWN] = str(os.getpid())
    # What looks every few seconds whether a node is about to be taken away is a process more for each group of workers, and
    # nobody takes away the one node of a cluster that begins here.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
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


def nodes() -> list[dict[str, float]]:
    """The resources of each machine of the cluster at hand that is up: CPU, GPU, memory, ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class Share:
    """How a cluster is shared out: so many processes, each with so many CPUs and GPUs."""

    processes: int
    cpus: int
    gpus: int


def share_out(nodes: Sequence[Mapping[str, float]], cells: int, most: int | None) -> Share:
    """One process per GPU, or without GPUs one per CPU; no more than `cells` and `most`; the CPUs shared evenly.

    `nodes` are the resources of each machine: a process must fit on one.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    wanted = max(1, min(cells, most or cells, gpus or sum(int(node.get("CPU", 0)) for node in nodes)))

    def room(cpus: int) -> int:
        """Processes with so many CPUs (and a GPU, if there are any) that fit."""
        fits = [int(node.get("CPU", 0)) // cpus for node in nodes]
        return sum(min(fit, int(node.get("GPU", 0))) if gpus else fit for fit, node in zip(fits, nodes, strict=True))

    largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    cpus = next((cpus for cpus in range(largest, 0, -1) if room(cpus) >= wanted), 1)
    return Share(max(1, min(wanted, room(cpus))), cpus, 1 if gpus else 0)


def capacity(nodes: Sequence[Mapping[str, float]], need: Mapping[str, float], workers: int = 1) -> int:
    """How many trials fit on the nodes at once, if each of a trial's workers needs `need` on one node."""
    slots = sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items() if amount) for node in nodes
    )
    return slots // max(1, workers)
