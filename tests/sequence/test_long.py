"""Fifteen stages in one process: quick from stage to stage, and no memory left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.commands import Commands, Finished
from tests.kit.runs import MakeFlags, pauses


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
    """Less than 2 s between the end of a stage's training and the start of the next beyond data passes and scoring."""
    found = pauses(done.events)
    assert len(found) == 14
    assert max(found) < 2


def test_memory_does_not_grow_with_the_stages(done: Finished) -> None:
    """After stage 2, when all libraries are warm, 13 more stages add less than 5 %."""
    memory = {event["stage"]: event["memory"] for event in done.events if event["event"] == "stage_end"}
    assert max(memory.values()) < 1.05 * memory[2]
