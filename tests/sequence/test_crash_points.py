"""Whatever a sequence is interrupted at, the same command again ends as if nothing had happened (CPU, fp32)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycl.cli.app import main
from raycl.state.store import Store
from tests.kit.commands import Commands
from tests.kit.crashes import POINTS, end_at
from tests.kit.runs import MakeFlags, digests

CODE = 9
FIELDS = {"train__checkpoint_every": 2, "method__dropout": 0.1, "eval__forward": "false"}
"""Four steps a stage, with dropout, so that a generator in another state shows."""


def crash(folder: Path, arguments: list[str], name: str) -> None:
    """Run jobs/sequence.py up to a point."""
    import sys

    end_at(POINTS[name], CODE)
    sys.argv = ["sequence.py", *arguments]
    main("run")


def scores(store: Path) -> dict[str, object]:
    """Key of a cell -> its predictions."""
    found = Store(str(store))
    return {key: found.read_predictions(key) for room, key in found.entries() if room == "scores"}


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing interrupts."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = commands.run(flags(store, "gain_o", "llama", "roget,snippets", **FIELDS))
    assert done.code == 0, done.err
    return store


@pytest.mark.parametrize("name", POINTS)
def test_a_sequence_that_ends_at_a_point_ends_the_same_after_the_same_command(
    name: str, commands: Commands, flags: MakeFlags, undisturbed: Path, tmp_path: Path
) -> None:
    """Same states, same answers; what was stored when it ended is not made again; nothing is left over."""
    store = tmp_path / "store"
    arguments = flags(store, "gain_o", "llama", "roget,snippets", **FIELDS)
    ended = commands.call(crash, arguments, name, MLFLOW_TRACKING_URI="off").wait()
    assert ended.code == CODE, f"the point was not reached\n{ended.err}"
    kept = {file: file.stat().st_mtime_ns for file in store.glob("stages/*/*/manifest.json")}
    done = commands.run(arguments)
    assert done.code == 0, done.err
    assert digests(store) == digests(undisturbed)
    assert scores(store) == scores(undisturbed)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    trained = [event["stage"] for event in done.events if event["event"] == "stage_start"]
    assert len(trained) == 2 - len(kept)
    assert Store(str(store)).verify() == []
    assert not list(store.glob("partial/*/*/*")), "no checkpoint of a stage that is published"


def test_the_points_cover_what_a_sequence_does() -> None:
    assert len(POINTS) >= 16
    assert len(set(map(json.dumps, ([one.where, one.call, one.after, one.name] for one in POINTS.values())))) == len(
        POINTS
    )
