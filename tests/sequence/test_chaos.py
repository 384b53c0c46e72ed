"""A long sequence on a cluster where some process is killed every few seconds."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raycl.state.store import Store
from tests.kit.cluster import Head, end
from tests.kit.commands import SECONDS, Commands, Running
from tests.kit.long_runs import WORKER
from tests.kit.runs import MakeFlags, digests

pytestmark = pytest.mark.slow
EVERY_SECONDS, MOST_STARTS = 4, 30
DRIVER = "the driver"
VICTIMS = (DRIVER, WORKER, "TrainController", "_QueueActor")
"""What the command lines of those that may die have in them: whoever trains, steers, or carries events."""
LEFT = (WORKER, "PlacementGroupCleaner")
"""What Ray leaves for a while after its controller was killed; many of them would starve a small machine."""
FIELDS = {"train__epochs": 14, "train__log_every": 8, "train__checkpoint_every": 16, "eval__forward": "false"}


def victims(seed: int) -> Iterator[str]:
    """Whom to kill next: each once, in random order, then again."""
    draw = random.Random(seed)
    for _ in itertools.count():
        yield from draw.sample(VICTIMS, len(VICTIMS))


def kill(name: str, running: Running, head: Head) -> bool:
    """SIGKILL of a process of that kind, if there is one."""
    found = [psutil.Process(running.process.pid)] if name == DRIVER else head.below(name)
    for process in found[:1]:
        process.send_signal(signal.SIGKILL)
    return bool(found)


def steps_in(events: Path) -> int:
    """Steps that were taken, not told of from the store: a stored stage has none of its own."""
    return events.read_text().count('"event": "step"') if events.is_file() else 0


def at_work(running: Running) -> bool:
    """Wait until a step is taken: where a start takes longer than a life, nothing could ever be done.

    Whether the command goes on.
    """
    before, deadline = steps_in(running.folder / "events.jsonl"), time.monotonic() + SECONDS
    while running.process.is_alive() and time.monotonic() < deadline:
        if steps_in(running.folder / "events.jsonl") > before:
            return True
        time.sleep(0.1)
    return running.process.is_alive()


def test_fifteen_stages_survive_a_kill_every_few_seconds(
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
    turn = victims(seed=0)
    for _ in range(MOST_STARTS):
        running = commands.start(arguments, RAY_ADDRESS=ray_head.address)
        while at_work(running):
            running.process.join(EVERY_SECONDS)
            if running.process.is_alive():
                name = next(turn)
                killed[name] += kill(name, running, ray_head)
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
    assert sum(killed.values()) >= 2, f"it was over before anything was killed: {dict(killed)}"
    assert digests(store) == digests(whole)
    assert set(published.values()) <= {1}
    assert Store(str(store)).verify() == []
