"""Fifteen stages in one process: nothing is begun anew from stage to stage, and no memory is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.commands import Commands, Finished
from tests.kit.runs import MakeFlags


@pytest.fixture(scope="module")
def done(commands: Commands, flags: MakeFlags, fifteen: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Order 4 with GainLoRA over InfLoRA, the method with the largest state."""
    store = tmp_path_factory.mktemp("long") / "store"
    settings = {"data__source": fifteen, "eval__forward": "false", "train__checkpoint_every": 2}
    done = commands.run(flags(store, "gain_inf", "llama", "4", **settings))
    assert done.code == 0, done.err
    assert len(Store(str(store)).stage_keys()) == 15
    return done


def test_the_next_stage_starts_at_once(done: Finished) -> None:
    """After stage 2 nothing is imported any more, and a stage trains right after the scores of the one before.

    What the pause between two stages is in seconds says benchmarks/pauses.py.
    """
    ends = [event for event in done.events if event["event"] == "stage_end"]
    assert len({event["modules"] for event in ends[1:]}) == 1
    order = [event["event"] for event in done.events if event["event"] in ("stage_start", "stage_end", "scores")]
    expected = [["stage_start", "stage_end", *["scores"] * stage] for stage in range(1, 16)]
    assert order == [name for names in expected for name in names]


def test_memory_does_not_grow_with_the_stages(done: Finished) -> None:
    """After stage 2, when all libraries are warm, 13 more stages add less than 5 %."""
    memory = {event["stage"]: event["memory"] for event in done.events if event["event"] == "stage_end"}
    assert max(memory.values()) < 1.05 * memory[2]
