"""Sequences that are long enough to be killed in the middle of."""

from __future__ import annotations

import time

from tests.kit.commands import SECONDS, Running

LONG = {"train__epochs": [5, 30], "train__log_every": 10, "eval__forward": "false"}
"""20 steps, then 120: enough to be killed in the middle of, since a worker is never more than two reports ahead."""
EARLY = '"event": "step", "stage": 2,'
"""In the driver's list of events once the long stage has done a step."""
WORKER = "RayTrainWorker"
"""What the command line of a process that trains has in it."""


def wait_for_early(running: Running) -> None:
    """Wait until the long stage is under way; fails if the command ends first."""
    deadline, path = time.monotonic() + SECONDS, running.folder / "events.jsonl"
    while time.monotonic() < deadline:
        if path.is_file() and EARLY in path.read_text():
            return
        assert running.process.is_alive(), (running.folder / "err").read_text()
        time.sleep(0.02)
    raise AssertionError("waited in vain")
