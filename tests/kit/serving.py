"""Served states in tests: the application in this process, `raycl serve` in one of its own, and a server to stand in for
an upstream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from raycl import Serving, make_app
from tests.kit.places import ROOT

SECONDS = 240
"""Longest wait for what takes some seconds: a machine may be busy with much else."""


@contextmanager
def client_of(runs: str | Sequence[str], **serving: Any) -> Iterator[TestClient]:
    """The application in this process, once its model answers."""
    with TestClient(make_app(runs, Serving(**serving)), raise_server_exceptions=False) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def post(url: str, body: Any, token: str | None = None) -> tuple[int, Any]:
    """Status and JSON of a request over HTTP, by the standard library."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@dataclass
class ServeProcess:
    """`raycl serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    errors: Path
    """What it says."""

    @classmethod
    def start(cls, folder: Path, arguments: Sequence[object], **environment: str) -> ServeProcess:
        """Start it in a folder, on a port that is free if `arguments` name none."""
        errors = folder / f"serve-{time.monotonic_ns()}.err"
        port = [] if "--port" in arguments else ["--port", "0"]
        command = [sys.executable, "-P", "-m", "raycl", "serve", *map(str, arguments), *port]
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        return cls(process, errors)

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.errors.read_text(errors="replace")

    def url(self) -> str:
        """Where it answers, once it does; ends in `/v1`."""
        until(lambda: " at http" in self.said or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
        return self.said.partition(" at ")[2].split(";")[0].split(",")[0]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end, and its exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def __enter__(self) -> ServeProcess:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Answering = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""Path and body of a request -> status and JSON; a text is sent as it is."""


@dataclass
class StandIn:
    """A server of OpenAI's API that says what a function says."""

    answering: Answering
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each request."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> StandIn:
        standing = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                standing.asked.append((self.path, body))
                standing.headers.append(dict(self.headers))
                status, found = standing.answering(self.path, body)
                content = (found if isinstance(found, str) else json.dumps(found)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
