"""Round trips, determinism, chains, other file systems, and who may use a folder as a store."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import raycl
from raycl.errors import StoreError
from raycl.state.stage_state import Branch, StagePart
from raycl.state.store import Store
from tests.kit.state_samples import (
    make_part,
    make_provenance,
    publish,
    publish_chain,
    rewrite_manifest,
    same_part,
    snapshot,
    stage_folder,
)

ABSENT = "0" * 64


def test_a_part_comes_back_bit_for_bit(store: Store) -> None:
    manifest = publish(store)
    assert same_part(store.read(manifest.key), make_part(1))
    assert store.has(manifest.key) and not store.has(ABSENT)
    assert store.stage_keys() == [manifest.key]
    assert store.manifest(manifest.key) == manifest
    assert store.verify() == []


def test_views_of_one_matrix_and_transposes_are_stored_whole(store: Store) -> None:
    matrix = torch.arange(12.0).reshape(3, 4).requires_grad_()
    part = StagePart("t", tensors={"row": matrix[0], "twin": matrix[0], "turned": matrix.T})
    read = store.read(publish(store, part=part).key)
    assert same_part(read, StagePart("t", tensors={name: tensor.detach() for name, tensor in part.tensors.items()}))
    read.tensors["row"].zero_()
    assert read.tensors["twin"].tolist() == [0, 1, 2, 3]


def test_a_part_may_be_facts_alone(store: Store) -> None:
    key = publish(store, part=StagePart("t", facts={"memory": [1, 2]})).key
    assert store.read(key) == StagePart("t", facts={"memory": [1, 2]})


def test_publishing_again_changes_nothing(store: Store) -> None:
    first = publish(store)
    before = snapshot(Path(store.uri))
    assert publish(store) == first
    assert snapshot(Path(store.uri)) == before


def test_the_first_result_of_a_key_stays(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    first = publish(store)
    assert publish(store, part=make_part(99)) == first
    assert "made twice with different results" in caplog.text
    assert same_part(store.read(first.key), make_part(1))


def test_digest_covers_facts_and_task_but_not_time(store: Store, tmp_path: Path) -> None:
    part = make_part(1)
    first = publish(store, part=part)
    for number, other in enumerate((StagePart("x", part.branch, part.tensors, part.facts), StagePart(part.task))):
        assert publish(Store(str(tmp_path / str(number))), part=other).digest != first.digest
    timed = make_provenance(runtime={"seconds": 99.0}, log=({"loss": 9.0},))
    again = Store(str(tmp_path / "timed")).publish(part, timed)
    assert (again.key, again.digest) == (first.key, first.digest)


def test_bytes_are_the_same_in_any_process(tmp_path: Path) -> None:
    script = "import sys; from tests.kit.state_samples import *; publish_chain(Store(sys.argv[1]), 2)"
    roots = [tmp_path / "one", tmp_path / "two"]
    paths = str(Path(raycl.__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(root)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": paths},
        )
        for seed, root in enumerate(roots, start=1)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    contents = [{name: data for name, data in snapshot(root).items() if "manifest" not in name} for root in roots]
    assert contents[0] == contents[1] and len(contents[0]) == 1 + 2 * 3


def test_dict_order_does_not_reach_the_bytes(store: Store, tmp_path: Path) -> None:
    part = make_part(1)
    assert part.branch is not None
    turned = StagePart(
        part.task,
        Branch(part.branch.rank, part.branch.alpha, _turned(part.branch.a), _turned(part.branch.b)),
        _turned(part.tensors),
        _turned(part.facts),
    )
    assert publish(Store(str(tmp_path / "other")), part=turned).digest == publish(store, part=part).digest


def test_a_chain_is_read_oldest_first(store: Store) -> None:
    keys = publish_chain(store, 3)
    assert store.lineage(keys[-1]) == keys
    state = store.read_state(keys[-1])
    assert [part.task for part in state.parts] == ["task-1", "task-2", "task-3"]
    assert store.lineage(keys[0]) == keys[:1]


def test_missing_parent_is_named(store: Store) -> None:
    key = publish(store, stage=2, parent=ABSENT).key
    with pytest.raises(StoreError, match=ABSENT):
        store.read_state(key)
    assert len(store.verify()) == 1


def test_a_circle_of_parents_is_refused(store: Store) -> None:
    keys = publish_chain(store, 3)
    rewrite_manifest(store, keys[0], {"parent": keys[2]})
    with pytest.raises(StoreError, match="parents come before"):
        store.read_state(keys[2])
    twins = [publish(store, stage=5, parent=ABSENT).key, publish(store, stage=5, parent=keys[0]).key]
    rewrite_manifest(store, twins[1], {"parent": twins[0]})
    with pytest.raises(StoreError, match=r"is stage 5, but its parent .* is stage 5"):
        store.lineage(twins[1])


def test_absent_stage_says_what_to_do(store: Store) -> None:
    for method in (store.manifest, store.read, store.read_state, store.lineage, store.folder):
        with pytest.raises(StoreError, match="run the sequence that makes it"):
            method(ABSENT)


def test_storage_grows_linearly(tmp_path: Path) -> None:
    sizes = []
    for stages in (2, 4, 8):
        root = tmp_path / str(stages)
        publish_chain(Store(str(root)), stages)
        sizes.append(sum(len(data) for data in snapshot(root).values()) / stages)
    assert max(sizes) < 1.05 * min(sizes)


# What may be stored


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_tensors_are_refused_by_name(store: Store, bad: float) -> None:
    part = make_part(1)
    part.tensors["gate.weight"][1, 2] = bad
    with pytest.raises(StoreError, match=r"1 of 12 values of tensor 'gate.weight'"):
        publish(store, part=part)
    part = make_part(1)
    assert part.branch is not None
    next(iter(part.branch.b.values()))[0, 0] = bad
    with pytest.raises(StoreError, match=r"lora_B.weight"):
        publish(store, part=part)
    assert not Path(store.uri).exists()


def test_observations_may_be_non_finite(store: Store) -> None:
    observed = make_provenance(runtime={"speed": float("inf")}, log=({"loss": float("nan")},))
    manifest = store.publish(make_part(), observed)
    assert manifest.runtime == {"speed": None} and manifest.log == [{"loss": None}]
    assert store.manifest(manifest.key) == manifest


def _branch(**fields: Any) -> Branch:
    plain = {"rank": 2, "alpha": 1.0, "a": {"m": torch.ones(2, 3)}, "b": {"m": torch.ones(4, 2)}}
    return Branch(**{**plain, **fields})


@pytest.mark.parametrize(
    ("part", "config"),
    [
        (StagePart("t", _branch(rank=3)), None),
        (StagePart("t", _branch(alpha=float("nan"))), None),
        (StagePart("t", _branch(b={})), None),
        (StagePart("t", _branch(a={}, b={})), None),
        (StagePart("t", _branch(a={"../m": torch.ones(2, 3)}, b={"../m": torch.ones(4, 2)})), None),
        (StagePart("t", _branch()), {"r": 8}),
        (StagePart("t", _branch()), {"lora_alpha": 2.0}),
        *((StagePart("t", _branch()), {name: True}) for name in ("use_rslora", "use_dora", "lora_bias")),
        *((StagePart("t", _branch()), {name: {"m": 4}}) for name in ("rank_pattern", "alpha_pattern")),
        (StagePart("t"), {"task_type": "CAUSAL_LM"}),
        (StagePart("t", tensors={"": torch.ones(1)}), None),
        (StagePart("t", tensors={"c": torch.ones(1, dtype=torch.complex64)}), None),
        (StagePart("t", tensors={"s": torch.eye(2).to_sparse()}), None),
        (StagePart("t", facts={"loss": float("nan")}), None),
        (StagePart(""), None),
    ],
)
def test_parts_without_a_valid_form_are_refused(store: Store, part: StagePart, config: Any) -> None:
    with pytest.raises(ValueError):
        store.publish(part, make_provenance(adapter_config=config))
    assert not Path(store.uri).exists()


# Where a store may be


def test_memory_store_works_like_a_folder() -> None:
    store = Store("memory://raycl-tests/store")
    try:
        keys = publish_chain(store, 2)
        assert publish(store).key == keys[0]
        assert store.read_state(keys[1]).stage == 2
        assert store.folder(keys[0]).startswith("memory://")
        store.write_scores(ABSENT, {"score": 1}, [])
        assert store.read_scores(ABSENT) == {"score": 1}
        store.write_partial(ABSENT, {"x": torch.ones(1)}, {})
        store.write_partial(ABSENT, {"x": torch.zeros(1)}, {})
        assert store.read_partial(ABSENT) == ({"x": torch.zeros(1)}, {})
        store.drop_partial(ABSENT)
        assert store.read_partial(ABSENT) is None
        assert store.verify() == []
    finally:
        fsspec.filesystem("memory").rm("raycl-tests", recursive=True)


def test_a_file_server_gets_its_folders(tmp_path: Path) -> None:
    store = Store(f"dir::file://{tmp_path}/store")
    keys = publish_chain(store, 2)
    assert Store(store.uri).read_state(keys[1]).stage == 2
    assert store.folder(keys[0]) == f"{store.uri}/stages/{keys[0][:2]}/{keys[0]}/{store.manifest(keys[0]).folder}"


def test_a_password_does_not_belong_in_a_uri() -> None:
    with pytest.raises(StoreError) as caught:
        Store("sftp://me:secret@host/runs")
    assert "secret" not in str(caught.value)


def test_strange_files_among_the_stages_are_left_alone(store: Store) -> None:
    key = publish(store).key
    (Path(store.uri) / "stages" / ".DS_Store").write_text("x")
    (stage_folder(store, key).parent / "notes.txt").write_text("x")
    assert store.stage_keys() == [key] and store.verify() == []


def test_paths_are_absolute_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store("~/runs").uri == Store("runs").uri == Store(f"file://{tmp_path}/runs").uri == str(tmp_path / "runs")


@pytest.mark.parametrize("uri", ["", "nonsense://x", "a\0b"])
def test_a_place_nobody_knows_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match=r"give|Give"):
        Store(uri)


def test_a_store_can_be_sent_to_another_process(store: Store) -> None:
    key = publish(store).key
    assert same_part(pickle.loads(pickle.dumps(store)).read(key), make_part(1))


def test_check_usable_makes_a_store_once(store: Store) -> None:
    store.check_usable()
    before = snapshot(Path(store.uri))
    assert list(before) == ["raycl-store.json"]
    Store(store.uri).check_usable()
    assert snapshot(Path(store.uri)) == before


def test_an_empty_folder_becomes_a_store_and_a_foreign_one_never(tmp_path: Path) -> None:
    Store(str(tmp_path)).check_usable()
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for use in (Store.check_usable, publish, lambda store: store.write_scores(ABSENT, {}, [])):
        with pytest.raises(StoreError, match=r"thesis\.tex"):
            use(Store(str(foreign)))
    assert list(snapshot(foreign)) == ["thesis.tex"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StoreError, match="file"):
        Store(str(path)).check_usable()
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(StoreError, match=f"{store.uri}.*Permission denied"):
        store.check_usable()


@pytest.mark.parametrize(
    "marker", [b"", b"{}", b'{"schema_version": 2}', b'{"schema_version": 1, "kind": "raycl-store"}', b"\xff"]
)
def test_a_store_of_another_schema_or_a_broken_marker_is_refused(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "raycl-store.json").write_bytes(marker)
    with pytest.raises(StoreError, match=r"raycl-store\.json"):
        Store(str(tmp_path)).check_usable()
    assert snapshot(tmp_path) == {"raycl-store.json": marker}


def test_looking_up_keys_needs_no_torch(store: Store) -> None:
    key = publish(store).key
    script = "import sys; from raycl.state.store import Store; Store(sys.argv[1]).manifest(sys.argv[2]); "
    script += "sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(raycl.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script, store.uri, key], env=environment, timeout=60).returncode == 0


def test_links_inside_a_store_are_not_followed(store: Store, tmp_path: Path) -> None:
    key = publish(store).key
    folder = stage_folder(store, key)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    for use in (lambda: store.read(key), lambda: publish(store)):
        with pytest.raises(StoreError, match="symbolic link"):
            use()


def _turned(mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(mapping.items()))


@pytest.mark.parametrize("name", ["what?", "100% of it", "a%20b", "#1 [x]*"])
def test_a_folder_may_be_called_anything(name: str, tmp_path: Path) -> None:
    """What other programs take for parts of a URI or for patterns is a part of the path here."""
    store = Store(str(tmp_path / "stores" / name))
    key = publish(store).key
    store.write_partial("ab" * 32, {}, {"step": 1})
    store.drop_partial("ab" * 32)
    assert same_part(Store(store.uri).read(key), make_part(1))
    assert store.verify() == [] and store.stage_keys() == [key]
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [name]
