"""Runs the command lines of a page of the documentation as a user types them, one after another."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.commands import Commands
from tests.kit.places import ROOT

SECONDS = 480
"""Longest life of a command, which takes some seconds: a machine may be busy with much else."""


@dataclass
class Shell:
    """Runs command lines in a folder that `cd` changes."""

    folder: Path
    environment: dict[str, str]
    small: list[str]
    """What a training command gets besides: a tiny model and few examples."""
    commands: Commands | None = None
    """Starts `raycl` without its imports, where a page has many commands and the environment says nothing to libraries."""
    said: dict[str, str] = field(default_factory=dict)
    """Command -> what it printed."""

    def run(self, line: str, cold: bool = False) -> None:
        """Run one command; it must succeed. `cold`: with its imports, whatever starts the others."""
        program, *arguments = shlex.split(line)
        if program == "cd":
            self.folder = self.folder / arguments[0]
            return
        # -P: as with an installed command, the current folder is not on Python's path.
        module = [sys.executable, "-P", "-m", program]
        if program == "pip":
            # Not into the environment of the tests, and from no index.
            site = self.folder.parent / "site-packages"
            arguments = [
                "install",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--no-index",
                "--target",
                str(site),
                ".",
            ]
            self.environment["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT)])
        elif program == "raycl" and arguments[0] in ("run", "compare", "tasks"):
            arguments += self.small
        if program == "raycl" and self.commands is not None and not cold:
            ended = self.commands.typed(arguments, self.folder, self.environment)
            assert ended.code == 0, f"{line}\n{ended.out}\n{ended.err}"
            self.said[line] = ended.out
            return
        done = subprocess.run(
            [*module, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        self.said[line] = done.stdout

    def python(self, code: str) -> None:
        """Run a program that lies in the folder."""
        (self.folder.parent / "program.py").write_text(code)
        environment = self.environment | {"PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)])}
        done = subprocess.run(
            [sys.executable, "../program.py"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.said["python"] = done.stdout
