"""The command line in processes of their own, which start fast: forked from a server that has imported the libraries.

Each such process is as fresh as a newly started one: the server imports modules and runs nothing. `stop_at` makes a
process kill itself with SIGKILL at a given step, so that no test waits for the right moment.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

LIBRARIES = [
    "deepspeed",
    "mlflow",
    "peft",
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "raycl.cli.app",
    "raycl.report.terminal",
    "raycl.sequence.group",
    "raycl.sequence.resolve",
    "raycl.sequence.driver",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "tests.kit.warm",
]
"""What the server imports before it forks."""
JOB = Path(__file__).parents[2] / "jobs" / "sequence.py"
SECONDS = 480
"""Longest life of a command, which takes some seconds: a machine may be busy with much else."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    """Exit code; -9 = killed."""
    out: str
    err: str
    folder: Path
    """Where `out`, `err` and, if asked for, `events.jsonl` and `modules.json` lie."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event the driver handled, each with `memory` (bytes used) and `modules` (number imported) at its arrival."""
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

    def wait(self) -> Finished:
        """Wait for the end; a command that lives too long is killed and fails the test."""
        self.process.join(SECONDS)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        assert not late, f"still running after {SECONDS} s:\n{out}\n{err}"
        return Finished(self.process.exitcode, out, err, self.folder)


class Commands:
    """Starts `raycl` commands in processes of their own."""

    def __init__(self, scratch: Path, environment: Mapping[str, str]) -> None:
        self.scratch, self.environment = scratch, dict(environment)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(LIBRARIES)
        self.count = 0

    def start(
        self,
        arguments: Sequence[object],
        stop_at: tuple[int, int] | None = None,
        whole: bool = False,
        where: Path | None = None,
        **environment: str,
    ) -> Running:
        """Start `jobs/sequence.py arguments`, in the folder `where` if one is given; with `stop_at` = (stage, step) it kills
        itself before that step.

        Unless `whole`, MLflow and the figures are left out: they take most of the time of a tiny run.
        """
        return self.call(_command, list(map(str, arguments)), stop_at, whole, where or Path.cwd(), **environment)

    def run(
        self,
        arguments: Sequence[object],
        stop_at: tuple[int, int] | None = None,
        whole: bool = False,
        **environment: str,
    ) -> Finished:
        """Run a command to its end."""
        return self.start(arguments, stop_at, whole, **environment).wait()

    def typed(self, arguments: Sequence[str], where: Path, environment: Mapping[str, str]) -> Finished:
        """Run `raycl arguments` to its end, in the folder `where`. What a library reads of the environment while it is
        imported was read before."""
        return self.call(_typed, list(arguments), where, **environment).wait()

    def cold(self, arguments: Sequence[object], **environment: str) -> Finished:
        """Run `jobs/sequence.py arguments` in a new interpreter, as a user does."""
        self.count += 1
        folder = self.scratch / f"command-{self.count}"
        folder.mkdir(parents=True)
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            done = subprocess.run(
                [sys.executable, __file__, str(folder), *map(str, arguments)],
                env=os.environ | self.environment | environment,
                stdout=out,
                stderr=err,
                timeout=SECONDS,
                check=False,
            )
        return Finished(done.returncode, (folder / "out").read_text(), (folder / "err").read_text(), folder)

    def call(self, function: Any, *arguments: Any, **environment: str) -> Running:
        """Start `function(folder, *arguments)` in such a process; it must be picklable."""
        self.count += 1
        folder = self.scratch / f"command-{self.count}"
        folder.mkdir(parents=True)
        values = self.environment | environment
        process = self.context.Process(target=_called, args=(function, folder, values, arguments))
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


def _called(function: Any, folder: Path, environment: Mapping[str, str], arguments: tuple[Any, ...]) -> None:
    _redirect(folder, environment)
    function(folder, *arguments)


def _command(folder: Path, arguments: list[str], stop_at: tuple[int, int] | None, whole: bool, where: Path) -> None:
    """What such a process does: the command line, watched."""
    from raycl.cli.app import main

    os.chdir(where)
    before = set(sys.modules)
    _record_events(folder / "events.jsonl")
    if stop_at:
        _die_at(*stop_at)
    if not whole:
        _leave_out_records()
    sys.argv = ["sequence.py", *arguments]
    try:
        main("run")
    finally:
        (folder / "modules.json").write_text(json.dumps(sorted(set(sys.modules) - before)))
        sys.stdout.flush()
        sys.stderr.flush()


def _typed(folder: Path, arguments: list[str], where: Path) -> None:
    """What such a process does for a command that a user types: nothing else."""
    from raycl.cli.app import main

    os.chdir(where)
    sys.argv = ["raycl", *arguments]
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _leave_out_records() -> None:
    """No MLflow and no figures."""
    from raycl.sequence import driver

    class NoRecords:
        """Records nothing, remembers nothing."""

        whole: ClassVar[dict[str, Path]] = {}
        files: ClassVar[dict[str, Path]] = {}
        places: ClassVar[dict[str, str]] = {}

        def __init__(self, *arguments: Any) -> None:
            """Takes what `Records` takes."""

        def handle(self, event: Any) -> None:
            """Nothing."""

    driver.Records = NoRecords


def _record_events(path: Path) -> None:
    """Write every event that a worker reported, as the terminal hears it, to a file, with the memory in use and the number
    of modules imported."""
    import psutil

    from raycl.events import NAMES, to_json
    from raycl.report.terminal import Terminal

    handle = Terminal.handle
    path.touch()
    process = psutil.Process()

    def recorded(self: Terminal, event: Any) -> None:
        if type(event) in NAMES:
            with path.open("a") as stream:
                seen = {"memory": process.memory_info().rss, "modules": len(sys.modules)}
                stream.write(json.dumps(to_json(event) | seen) + "\n")
        handle(self, event)

    Terminal.handle = recorded


def _die_at(stage: int, step: int) -> None:
    """Let this process end by SIGKILL just before an optimizer step."""
    from raycl.train.loop import TrainLoop

    take_step = TrainLoop.train_step

    def fatal(self: TrainLoop, micro_batches: Any) -> None:
        if (self.stage, self.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(self, micro_batches)

    TrainLoop.train_step = fatal


if __name__ == "__main__":  # the process of `Commands.cold`
    _, _folder, *sys.argv[1:] = sys.argv
    try:
        runpy.run_path(str(JOB), run_name="__main__")
    finally:
        (Path(_folder) / "modules.json").write_text(json.dumps(sorted(sys.modules)))
