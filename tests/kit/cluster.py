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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
START_SECONDS = 300
"""How long a head node may take to answer: a busy machine takes minutes."""
PATIENCE = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}
"""A starved process is not a dead one."""
PORTS = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")


@dataclass(frozen=True)
class Head:
    """A running head node of two CPUs."""

    process: subprocess.Popen[bytes]
    address: str
    """For RAY_ADDRESS."""
    dashboard: str
    """Where jobs are submitted to; nobody answers there unless it was started with a dashboard."""

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


@contextmanager
def head_node(environment: Mapping[str, str] | None = None, dashboard: bool = False) -> Iterator[Head]:
    """`ray start --head` in the foreground of a process of its own, with `environment` on top of this process's."""
    folder = tempfile.mkdtemp(prefix="rh", dir="/tmp")  # short enough for sockets
    ports = dict(zip((*PORTS, "metrics-export-port", "dashboard-port"), free_ports(6), strict=True))
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--include-dashboard={str(dashboard).lower()}"]
    command += [f"--{name}={number}" for name, number in ports.items()]
    command += [f"--system-config={json.dumps(PATIENCE)}"]
    own = {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=clean_environment() | dict(environment or {}) | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for name in ("port", "dashboard-port") if dashboard else ("port",):
            wait_for_port(ports[name], process, Path(folder) / "log")
        yield Head(process, f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}")
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
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the head node ended:\n{log.read_text()}"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the head node does not answer:\n{log.read_text()}")
