"""A store that is kept well: sizes, damage set aside and made again, leftovers that nobody needs, groups that share one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from raycl.errors import StoreError
from raycl.state.files import Files
from raycl.state.manifest import TENSORS
from raycl.state.store import Store
from raycl.state.upkeep import busy, damages, discard, leftovers, repair, sizes
from tests.kit.cli import invoke
from tests.kit.state_samples import publish, publish_chain, rewrite_manifest, snapshot, stage_folder

SCORES = "cd" * 32


@pytest.fixture
def chain(store: Store) -> list[str]:
    """Three stages and a row of scores."""
    keys = publish_chain(store, 3)
    store.write_scores(SCORES, {"score": 50.0}, [{"prediction": "a"}])
    return keys


def damage(store: Store, key: str) -> Path:
    """Cut a stage's tensors short."""
    manifest = store.manifest(key)
    file = stage_folder(store, key) / manifest.folder / TENSORS
    file.write_bytes(file.read_bytes()[:-1])
    return file


def make_old(store: Store, *keys: str) -> None:
    """As if stages had been made years ago."""
    for key in keys:
        rewrite_manifest(store, key, {"created": "2020-01-01T00:00:00+00:00"})


def test_sizes_are_those_of_the_files(store: Store, chain: list[str]) -> None:
    """Room by room: entries, files, bytes."""
    found = {one.room: one for one in sizes(store.uri)}
    assert set(found) == {"stages", "scores"}
    assert (found["stages"].entries, found["scores"].entries, found["scores"].files) == (3, 1, 2)
    held = [path.stat().st_size for path in (Path(store.uri) / "stages").rglob("*") if path.is_file()]
    assert (found["stages"].files, found["stages"].bytes) == (len(held), sum(held))


def test_repair_sets_damage_aside_and_deletes_nothing(store: Store, chain: list[str]) -> None:
    """The damaged stage is none any more, its files are kept, the others are what they were, and it can be made again."""
    before = snapshot(Path(store.uri))
    cut = damage(store, chain[1]).read_bytes()
    mended, found = repair(store.uri)
    assert (mended, [one.key for one in found]) == (False, [chain[1]])
    assert TENSORS in found[0].problem
    assert not store.has(chain[1]) and store.has(chain[0]) and store.has(chain[2])
    after = snapshot(Path(store.uri))
    assert cut in after.values()
    assert {name for name in before if chain[1] not in name} <= set(after)
    assert repair(store.uri) == (False, [])
    publish(store, 2, chain[0])
    assert store.verify() == []


def test_repair_sets_rows_of_scores_aside(store: Store, chain: list[str]) -> None:
    """Those whose predictions are not what was written."""
    (file,) = (Path(store.uri) / "scores").rglob("predictions.jsonl")
    file.write_text("{}\n")
    assert [(one.room, one.key) for one in repair(store.uri)[1]] == [("scores", SCORES)]
    assert not store.has_scores(SCORES)
    assert damages(store) == []


@pytest.mark.parametrize("content", [None, b"", b"{}x", b"\xff"])
def test_a_lost_marker_is_written_anew(store: Store, chain: list[str], content: bytes | None) -> None:
    """A message says to keep the store; afterwards it is the store that it was."""
    before = snapshot(Path(store.uri))
    marker = Path(store.uri, "raycl-store.json")
    marker.unlink() if content is None else marker.write_bytes(content)
    if content is not None:
        with pytest.raises(StoreError, match=r"keep the store.*raycl store repair") as raised:
            Store(store.uri).check_usable()
        assert "elete" not in str(raised.value)
    assert repair(store.uri) == (True, [])
    assert snapshot(Path(store.uri)) == before


def test_repair_touches_no_folder_of_somebody_else(tmp_path: Path) -> None:
    """Nor a store of another release."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("theirs")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        repair(str(tmp_path / "theirs"))
    store = Store(str(tmp_path / "store"))
    publish(store)
    marker = Path(store.uri, "raycl-store.json")
    marker.write_text(marker.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(StoreError, match="schema version 9"):
        repair(store.uri)


def test_what_is_needed_is_no_leftover(store: Store) -> None:
    """Of two branches of a chain one is needed: its stages, the shared one among them, stay."""
    first, second = publish_chain(store, 2)
    other = publish(store, 3, first).key
    make_old(store, first, second, other)
    assert [one.key for one in leftovers(store, [second], days=30)] == [other]
    assert {one.key for one in leftovers(store, [], days=30)} == {first, second, other}
    discard(store.uri, leftovers(store, [second], days=30))
    assert store.stage_keys() == sorted([first, second])
    assert store.verify() == []


def test_what_is_young_is_no_leftover(store: Store, chain: list[str]) -> None:
    """However little it is needed."""
    assert leftovers(store, [], days=30) == []


def test_a_checkpoint_of_a_finished_stage_is_left_over(store: Store, chain: list[str]) -> None:
    """One of a stage that is not finished is what it will go on from."""
    store.write_partial(chain[0], {"x": torch.zeros(3)}, {})
    store.write_partial("ef" * 32, {"x": torch.zeros(3)}, {})
    found = leftovers(store, chain, days=30)
    assert [(one.room, one.key) for one in found] == [("partial", chain[0])]
    discard(store.uri, found)
    assert store.read_partial("ef" * 32) is not None and store.read_partial(chain[0]) is None


def test_a_lineage_that_is_not_understood_stops_the_collection(store: Store, chain: list[str]) -> None:
    """A needed stage whose manifest is damaged might stand on anything."""
    make_old(store, *chain)
    (stage_folder(store, chain[2]) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        leftovers(store, [chain[2]], days=30)


def test_nothing_is_deleted_while_a_run_is_at_work(store: Store, chain: list[str]) -> None:
    """A held lease stops both; one that was given back does not."""
    make_old(store, *chain)
    found = leftovers(store, [], days=30)
    lease = store.lease("ab" * 32)
    assert lease.acquire(0)
    assert busy(store.uri) == ["ab" * 32]
    for work in (lambda: discard(store.uri, found), lambda: repair(store.uri)):
        with pytest.raises(StoreError, match="wait for its end"):
            work()
    assert store.stage_keys() == sorted(chain)
    lease.release()
    assert busy(store.uri) == []
    discard(store.uri, found)
    assert store.stage_keys() == []


def test_the_verbs(store: Store, chain: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc shows first and deletes on demand only; tags and runs under raycl's home are heeded; repair says what to run."""
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    make_old(store, *chain)
    run = tmp_path / "home" / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps({"stage_keys": chain[:2]}))
    shown = invoke("store", ["gc", "--store", store.uri])
    assert shown.code == 0 and chain[2][:12] in shown.stdout and "nothing was deleted" in shown.stdout
    assert chain[1][:12] not in shown.stdout
    assert len(store.stage_keys()) == 3
    assert "1 entries" in invoke("store", ["gc", "--store", store.uri, "--delete"]).stdout
    assert store.stage_keys() == sorted(chain[:2])
    damage(store, chain[1])
    said = invoke("store", ["verify", "--store", store.uri])
    assert said.code == 2 and TENSORS in said.stderr
    mended = invoke("store", ["repair", "--store", store.uri])
    assert mended.code == 0
    assert f"raycl run --config {run / 'spec.json'} --store {store.uri}" in mended.stdout
    assert invoke("store", ["verify", "--store", store.uri]).code == 0
    assert "stages" in invoke("store", ["du", "--store", store.uri]).stdout
    (run / "summary.json").write_text("{")
    refused = invoke("store", ["gc", "--store", store.uri])
    assert refused.code == 2 and "summary.json" in refused.stderr


def test_a_group_shares_a_store(tmp_path: Path) -> None:
    """Where the group may write in its folder it may write in all that comes into it, whatever the user's mask."""
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(0o077)
    try:
        shared, own = Store(str(root)), Store(str(tmp_path / "own"))
        for store in (shared, own):
            publish(store)
            assert store.lease("ab" * 32).acquire(0)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode for path in root.rglob("*")}
    assert len(modes) > 5
    assert all(mode & stat.S_IWGRP and mode & stat.S_IRGRP for mode in modes.values())
    assert not any(path.stat().st_mode & stat.S_IWGRP for path in (tmp_path / "own").rglob("*"))


def test_a_lock_that_cannot_be_opened_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's lock file: which one, and what its owner can do."""
    store.check_usable()
    place = Path(store.uri, "leases", f"{'ab' * 32}.lock")
    place.mkdir(parents=True)  # no user can open a folder for writing, not even the one that may do all else
    with pytest.raises(StoreError, match=r"\.lock: cannot be locked.*chmod -R g\+w"):
        store.lease("ab" * 32).acquire(0)


def test_files_moves_and_counts(tmp_path: Path) -> None:
    """The same in memory as on a disk."""
    for uri in (str(tmp_path / "f"), f"memory://upkeep-{tmp_path.name}"):
        files = Files(uri)
        files.write("a/b", b"12")
        files.move("a/b", "c/d/e")
        assert files.sizes("c") == {"d/e": 2}
        assert files.sizes("nosuch") == {}
        assert files.read("c/d/e") == b"12"


def test_what_says_that_a_stage_is_there_goes_first(
    store: Store, chain: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a reader, or a run that is killed meanwhile, meets the stage or none, and no half of it."""
    gone: list[str] = []
    remove = Files.remove
    monkeypatch.setattr(Files, "remove", lambda files, name: (gone.append(name), remove(files, name)))
    make_old(store, *chain)
    found = [one for one in leftovers(store, [chain[1]], days=30) if one.room == "stages"]
    discard(store.uri, found)
    folder = f"stages/{chain[2][:2]}/{chain[2]}"
    assert gone == [f"{folder}/manifest.json", folder]
