"""A long sequence on a cluster where each of its processes is killed once."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from raycl.state.store import Store
from tests.kit.cluster import Head, end
from tests.kit.commands import SECONDS, Commands, Running
from tests.kit.long_runs import WORKER
from tests.kit.runs import MakeFlags, digests

pytestmark = pytest.mark.slow
AT, MOST_STARTS = (2, 6, 10, 14), 20
"""Stages at which somebody dies, and how often the command may be given."""
LONGEST_PAUSE = 1.0
"""Seconds between a step and a death, at most: so it comes in a step, a checkpoint, a publication or a score."""
DRIVER = "the driver"
VICTIMS = (DRIVER, WORKER, "TrainController", "_QueueActor")
"""What the command lines of those that may die have in them: whoever trains, steers, or carries events."""
LEFT = (WORKER, "PlacementGroupCleaner")
"""What Ray leaves for a while after its controller was killed; many of them would starve a small machine."""
FIELDS = {"train__epochs": 6, "train__log_every": 4, "train__checkpoint_every": 8, "eval__forward": "false"}
"""24 steps a stage, of which the driver hears six times."""


def deaths(draw: random.Random) -> list[tuple[int, str]]:
    """Who dies next, and at which stage, in random order. How many die is the same on every machine: after each death all of
    Ray's processes start anew, which is what the test's time goes into."""
    return list(zip(AT, draw.sample(VICTIMS, len(VICTIMS)), strict=True))


def kill(name: str, running: Running, head: Head) -> bool:
    """SIGKILL of a process of that kind, if there is one."""
    found = [psutil.Process(running.process.pid)] if name == DRIVER else head.below(name)
    for process in found[:1]:
        process.send_signal(signal.SIGKILL)
    return bool(found)


def stage_of(events: Path) -> int:
    """The stage of the last step that was taken, not told of from the store: a stored stage has none of its own."""
    lines = events.read_text().splitlines() if events.is_file() else []
    steps = [json.loads(line) for line in lines if line.startswith('{"event": "step"') and line.endswith("}")]
    return steps[-1]["stage"] if steps else 0


def reaches(running: Running, stage: int) -> bool:
    """Wait until a step of this stage or a later one is taken: where a start takes longer than a life, nothing could ever
    be done.

    Whether the command goes on.
    """
    deadline = time.monotonic() + SECONDS
    while running.process.is_alive() and time.monotonic() < deadline:
        if stage_of(running.folder / "events.jsonl") >= stage:
            return True
        time.sleep(0.1)
    return running.process.is_alive()


def test_fifteen_stages_survive_the_death_of_each_process(
    commands: Commands, ray_head: Head, flags: MakeFlags, fifteen: Path, tmp_path: Path
) -> None:
    """The same command again, however it ended, until it is done: the digests of a run that nothing disturbed, each stage
    published once."""
    whole, store = tmp_path / "whole", tmp_path / "store"
    done = commands.run(flags(whole, "gain_o", "llama", "4", data__source=fifteen, **FIELDS))
    assert done.code == 0, done.err

    arguments = flags(store, "gain_o", "llama", "4", data__source=fifteen, workers=1, **FIELDS)
    killed: Counter[str] = Counter()
    published: Counter[str] = Counter()
    draw = random.Random(0)
    turn = deaths(draw)
    for _ in range(MOST_STARTS):
        running = commands.start(arguments, RAY_ADDRESS=ray_head.address)
        while turn and reaches(running, turn[0][0]):
            running.process.join(draw.uniform(0, LONGEST_PAUSE))
            if running.process.is_alive() and kill(turn[0][1], running, ray_head):
                killed[turn.pop(0)[1]] += 1
        ended = running.wait()
        published.update(
            event["key"] for event in ended.events if event["event"] == "stage_end" and not event["cached"]
        )
        end([process for name in LEFT for process in ray_head.below(name)])
        assert ended.code in (0, 2, -signal.SIGKILL), f"a death is no defect of raycl's\n{ended.err}"
        assert "Traceback" not in ended.err or ended.code == -signal.SIGKILL, ended.err
        if ended.code == 0:
            break
    else:
        raise AssertionError(f"not done after {MOST_STARTS} starts; killed {dict(killed)}")
    assert set(killed) == set(VICTIMS), f"it was over before each was killed: {dict(killed)}"
    assert digests(store) == digests(whole)
    assert set(published.values()) <= {1}
    assert Store(str(store)).verify() == []
