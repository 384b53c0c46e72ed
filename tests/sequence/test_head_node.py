"""A head node of its own with token authentication, and jobs submitted to it as a user submits them."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from raycl.state.store import Store
from tests.kit.runs import MakeFlags

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    token: dict[str, str]
    """The environment that lets a client in."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with its own folder, ports and token, in the foreground of a process that is ended by id."""
    folder = tempfile.mkdtemp(prefix="rh", dir="/tmp")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ports = free_ports(6)
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
    command += [f"--dashboard-agent-listen-port={ports[3]}", f"--dashboard-agent-grpc-port={ports[4]}"]
    command += [f"--metrics-export-port={ports[5]}"]
    process = subprocess.Popen(
        command,
        env=clean_environment() | token | {"RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(ports[1], process)
        yield Head(f"http://127.0.0.1:{ports[1]}", token)
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait(timeout=60)
        for child in below:
            if child.is_running():
                child.kill()
        psutil.wait_procs(below, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


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


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head node ended"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the head node does not answer")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean copy of the committed files."""
    data = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path / "checkout", filter="data")
    shutil.rmtree(tmp_path / "checkout" / "benchmarks", ignore_errors=True)
    return tmp_path / "checkout"


def submit(
    head: Head, checkout: Path, arguments: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`ray job submit --working-dir CHECKOUT -- python jobs/sequence.py ARGUMENTS`."""
    home = {"env_vars": {"RAYCL_HOME": str(checkout.parent / "home"), "HF_HUB_OFFLINE": "1"}}
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", str(checkout)]
    command += ["--runtime-env-json", json.dumps(home), "--", sys.executable, "jobs/sequence.py", *arguments]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, env=clean_environment() | environment, capture_output=True, text=True, timeout=400, check=False
        )
        # The dashboard answers some seconds before the agent that starts jobs has registered.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def test_a_job_without_the_token_is_refused(head: Head, checkout: Path, tmp_path: Path) -> None:
    """The head node answers 401, the client says why, and nothing runs."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=60)
    strange = {"RAY_AUTH_MODE": "disabled"}
    done = submit(head, checkout, ["--order", "demo", "--store", str(tmp_path / "store")], strange)
    assert done.returncode != 0
    assert "token authentication is enabled" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_submitted_job_runs_a_sequence(head: Head, checkout: Path, flags: MakeFlags, tmp_path: Path) -> None:
    """With the token the job runs on the cluster's workers, its log is plain lines, and the store is sound."""
    arguments = flags(tmp_path / "store", "gain_o", "llama", "roget", workers=1, eval__forward="false")
    done = submit(head, checkout, arguments, head.token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 1/1 roget: step 4/4" in done.stdout
    assert "succeeded" in done.stdout
    store = Store(str(tmp_path / "store"))
    assert len(store.stage_keys()) == 1
    assert store.verify() == []
