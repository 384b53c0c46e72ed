"""A real MLflow server on loopback, which a test may kill and start again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

SECONDS = 240
"""Longest wait for its start: a machine may be busy with much else."""


class MlflowServer:
    """`mlflow server` with its database and files in one folder; always at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, f"sqlite:///{folder}/server.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        place = ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        log = self.folder / "server.log"
        with log.open("a") as out:
            # What it would run beside, eight processes for jobs of evaluation, takes twice the time of its own start.
            environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            command = [sys.executable, "-m", "mlflow", "server", *place, *where]
            self._process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"no answer after {SECONDS} s\n{log.read_text()}")

    @property
    def pid(self) -> int:
        """Of the process that runs. Raises AssertionError if none does."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL of it and of the processes that answer for it, if it runs; one that was killed may be started again."""
        if self._process is None:
            return
        if self._process.poll() is None:
            kill(self._process.pid)
        self._process.wait()
        self._process = None


def kill(pid: int) -> None:
    """SIGKILL of a server and of the processes that answer for it."""
    import psutil

    whole = psutil.Process(pid)
    for one in (*whole.children(recursive=True), whole):
        one.kill()
