"""Head nodes of Ray for tests: each in a folder of its own, with ports of its own, ended by process id."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
START_SECONDS = 300
"""How long a head node may take to answer: a busy machine takes minutes."""
PATIENCE = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}
"""A starved process is not a dead one."""
QUICK = {"health_check_timeout_ms": 10_000, "health_check_failure_threshold": 3, "health_check_period_ms": 1_000}
"""Where a node is killed: the others hear of it within seconds."""
PORTS = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
FURTHER_PORTS = ("metrics-export-port",)
JOINED = "Ray runtime started"
"""What `ray start` says of a node that is part of a cluster."""


@dataclass(frozen=True)
class Node:
    """A running node."""

    process: subprocess.Popen[bytes]
    folder: Path
    """Its log, and Ray's own files."""

    def below(self, name: str = "") -> list[psutil.Process]:
        """The processes of the cluster, or those whose command line has `name` in it."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found


@dataclass(frozen=True)
class Head(Node):
    """A running head node."""

    address: str
    """For RAY_ADDRESS."""
    dashboard: str
    """Where jobs are submitted to; nobody answers there unless it was started with a dashboard."""


@contextmanager
def head_node(
    environment: Mapping[str, str] | None = None,
    dashboard: bool = False,
    cpus: int = 2,
    health: Mapping[str, int] = PATIENCE,
) -> Iterator[Head]:
    """`ray start --head` in the foreground of a process of its own, with `environment` on top of this process's."""
    ports = dict(zip((*PORTS, *FURTHER_PORTS, "dashboard-port"), free_ports(6), strict=True))
    flags = ["--head", f"--num-cpus={cpus}", f"--include-dashboard={str(dashboard).lower()}"]
    with _started([*flags, f"--system-config={json.dumps(health)}"], ports, environment) as node:
        for name in ("port", "dashboard-port") if dashboard else ("port",):
            wait_for_port(ports[name], node.process, node.folder / "log")
        address, page = f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"
        yield Head(node.process, node.folder, address, page)


@contextmanager
def further_node(head: Head, environment: Mapping[str, str] | None = None, cpus: int = 1) -> Iterator[Node]:
    """Another node of a cluster, on this machine."""
    ports = dict(zip((*PORTS[2:], *FURTHER_PORTS), free_ports(3), strict=True))
    with _started([f"--address={head.address}", f"--num-cpus={cpus}"], ports, environment) as node:
        _wait_for(lambda: JOINED in (node.folder / "log").read_text(), node.process, node.folder / "log")
        yield node


@contextmanager
def _started(flags: Sequence[str], ports: Mapping[str, int], environment: Mapping[str, str] | None) -> Iterator[Node]:
    """`ray start --block` with a folder of its own; ended with all that it started."""
    folder = tempfile.mkdtemp(prefix="rh", dir="/tmp")  # short enough for sockets
    command = [RAY, "start", "--block", *flags, *(f"--{name}={number}" for name, number in ports.items())]
    own = {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=clean_environment() | dict(environment or {}) | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Node(process, Path(folder))
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait(timeout=60)
        end(below)
        shutil.rmtree(folder, ignore_errors=True)


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill what is left of these processes, by id."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=20)


def clean_environment() -> dict[str, str]:
    """This process's environment without anything about Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until somebody listens."""

    def listening() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    _wait_for(listening, process, log)


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node that is starting is ready; fails with its log if it ends before."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the node ended:\n{log.read_text()}"
        if ready():
            return
        time.sleep(0.1)
    raise AssertionError(f"the node does not answer:\n{log.read_text()}")
