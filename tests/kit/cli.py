"""The command line in this process."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams."""
        return self.stdout + self.stderr


def invoke(verb: str, arguments: Sequence[object] = ()) -> Answer:
    """Run `raycl verb arguments` and return what it said."""
    from raycl.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["raycl", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main(verb)
    except SystemExit as end:
        return Answer(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, handler)
    raise AssertionError("the command did not end the process")
