"""The command line in processes of their own, which start fast: forked from a server that has imported the libraries.

Each such process is as fresh as a newly started one: the server imports modules and runs nothing. `stop_at` makes a
process kill itself with SIGKILL at a given step, so that no test waits for the right moment.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = [
    "deepspeed",
    "mlflow",
    "peft",
    "matplotlib.figure",
    "raycl.cli",
    "raycl.report.terminal",
    "raycl.run.host",
    "raycl.run.resolve",
    "raycl.run.sequence",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
]
"""What the server imports before it forks."""
SECONDS = 240
"""Longest life of a command."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    """Exit code; -9 = killed."""
    out: str
    err: str
    seconds: float
    folder: Path
    """Where `out`, `err` and, if asked for, `events.jsonl` and `modules.json` lie."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event the driver handled, each with `at`, the time of its arrival in seconds."""
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def modules(self) -> set[str]:
        """Modules imported while the command ran, beyond those of the server."""
        return set(json.loads((self.folder / "modules.json").read_text()))


@dataclass
class Running:
    """A command under way."""

    process: Any
    folder: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> Finished:
        """Wait for the end; a command that lives too long is killed and fails the test."""
        self.process.join(SECONDS)
        seconds = time.monotonic() - self.started
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        assert not late, f"still running after {SECONDS} s:\n{out}\n{err}"
        return Finished(self.process.exitcode, out, err, seconds, self.folder)


class Commands:
    """Starts `raycl` commands in processes of their own."""

    def __init__(self, scratch: Path, environment: Mapping[str, str]) -> None:
        self.scratch, self.environment = scratch, dict(environment)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(LIBRARIES)
        self.count = 0

    def start(self, arguments: Sequence[object], stop_at: tuple[int, int] | None = None, **environment: str) -> Running:
        """Start `jobs/sequence.py arguments`; with `stop_at` = (stage, step) it kills itself before that step."""
        self.count += 1
        folder = self.scratch / f"command-{self.count}"
        folder.mkdir(parents=True)
        values = self.environment | environment
        process = self.context.Process(target=_command, args=(list(map(str, arguments)), folder, values, stop_at))
        process.start()
        return Running(process, folder)

    def run(self, arguments: Sequence[object], stop_at: tuple[int, int] | None = None, **environment: str) -> Finished:
        """Run a command to its end."""
        return self.start(arguments, stop_at, **environment).wait()

    def call(self, function: Any, *arguments: Any, **environment: str) -> Running:
        """Start a picklable function in such a process."""
        self.count += 1
        folder = self.scratch / f"command-{self.count}"
        folder.mkdir(parents=True)
        values = self.environment | environment
        process = self.context.Process(target=_called, args=(function, arguments, folder, values))
        process.start()
        return Running(process, folder)


def _redirect(folder: Path, environment: Mapping[str, str]) -> None:
    """Standard output and error into files, down to the file descriptors; the environment as given."""
    os.environ.update(environment)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        stream.flush()
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(descriptor, stream.fileno() if stream.fileno() > 0 else {"out": 1, "err": 2}[name])
        os.close(descriptor)


def _called(function: Any, arguments: tuple[Any, ...], folder: Path, environment: Mapping[str, str]) -> None:
    _redirect(folder, environment)
    one_thread()
    function(*arguments)


def one_thread() -> None:
    """One CPU thread: tiny matrices gain nothing from more, and lose much where cores are shared."""
    from raycl.run import host

    host._threads = lambda workers: 1


def _command(
    arguments: list[str], folder: Path, environment: Mapping[str, str], stop_at: tuple[int, int] | None
) -> None:
    """What such a process does: the command line, watched."""
    _redirect(folder, environment)
    one_thread()
    before = set(sys.modules)
    _record_events(folder / "events.jsonl")
    if stop_at:
        _die_at(*stop_at)
    from raycl.cli import app

    try:
        app(arguments, prog_name="sequence.py")
    finally:
        (folder / "modules.json").write_text(json.dumps(sorted(set(sys.modules) - before)))
        sys.stdout.flush()
        sys.stderr.flush()


def _record_events(path: Path) -> None:
    """Write every event the driver handles to a file, with the time of its arrival."""
    from raycl.run.sequence import Driver

    handle = Driver.handle
    path.touch()

    def recorded(self: Driver, event: dict[str, Any]) -> None:
        with path.open("a") as stream:
            stream.write(json.dumps(event | {"at": time.time(), "pid": os.getpid()}) + "\n")
        handle(self, event)

    Driver.handle = recorded


def _die_at(stage: int, step: int) -> None:
    """Let this process end by SIGKILL just before an optimizer step."""
    from raycl.train.loop import TrainLoop

    take_step = TrainLoop._step

    def fatal(self: TrainLoop, micro_batches: Any) -> None:
        if (self.stage, self.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(self, micro_batches)

    TrainLoop._step = fatal
