"""A real disk that is full, and one that cannot be written: a clear message, a sound store, and a rerun that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raycl.errors import StoreError
from raycl.state.store import Store
from tests.kit.cli import invoke
from tests.kit.disks import fill, make_read_only, small_disk
from tests.kit.runs import MakeFlags
from tests.kit.state_samples import make_part, publish, same_part, snapshot

KEY = "ab" * 32
WRITES: dict[str, Callable[[Store], object]] = {
    "stage": lambda store: publish(store, 2),
    "scores": lambda store: store.write_scores(KEY, {"score": 1.0}, [{"prediction": "a" * 9000}]),
    "checkpoint": lambda store: store.write_partial(KEY, {"x": torch.zeros(4096)}, {}),
}


@pytest.mark.parametrize("left", [0, 4096, 3 * 4096])
@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_leaves_a_sound_store(tmp_path: Path, what: str, left: int) -> None:
    """However far the writer gets: what was there stays, nothing is half, and the same call works when there is room."""
    with small_disk(tmp_path / "disk", 256) as disk:
        store = Store(str(disk / "store"))
        first = publish(store).key
        filler = fill(disk, left)
        with pytest.raises(StoreError, match=r"No space left on device.*free space"):
            WRITES[what](store)
        assert store.stage_keys() == [first] and same_part(store.read(first), make_part(1))
        assert store.verify() == [] and not store.has_scores(KEY) and store.read_partial(KEY) is None
        filler.unlink()
        WRITES[what](store)
        assert store.verify() == []


@pytest.mark.parametrize("what", WRITES)
def test_a_store_that_cannot_be_written_can_be_read(tmp_path: Path, what: str) -> None:
    """Every write says so; nothing changes."""
    with small_disk(tmp_path / "disk", 256) as disk:
        store = Store(str(disk / "store"))
        first = publish(store).key
        before = snapshot(disk)
        make_read_only(disk)
        fresh = Store(store.uri)
        with pytest.raises(StoreError, match="Read-only file system"):
            WRITES[what](fresh)
        assert same_part(fresh.read(first), make_part(1)) and fresh.verify() == []
        assert snapshot(disk) == before


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and the next step; the same command then ends well, with nothing left of the first try."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    with small_disk(tmp_path / "disk", 512) as disk:
        store = Store(str(disk / "store"))
        store.check_usable()
        given = flags(Path(store.uri), order="roget", workers=0, eval__forward="false")
        arguments = [*given, "--tracking", "off", "--output", tmp_path / "out"]
        filler = fill(disk, 4 * 4096)
        full = invoke("run", arguments)
        assert full.code == 2, full.output[-2000:]
        assert "Traceback" not in full.output
        assert "No space left on device" in full.stderr and "free space" in full.stderr
        assert store.verify() == []
        filler.unlink()
        assert invoke("run", arguments).code == 0
        assert len(store.stage_keys()) == 1 and store.verify() == []
