"""Whatever happens to the files of a stage, reading it is an error that names the file, and changes nothing."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from raycl.errors import StoreError
from raycl.state.manifest import Manifest
from raycl.state.sealed import seal
from raycl.state.store import Store
from tests.kit.state_samples import forge_content, publish, publish_chain, rewrite_manifest, snapshot, stage_folder

NAMES = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "tensors.safetensors", "manifest.json"]


def file_of(store: Store, key: str, name: str) -> Path:
    """The path of a content file or of the manifest."""
    return stage_folder(store, key) / name if name == "manifest.json" else Path(store.folder(key)) / name


def assert_refused(store: Store, key: str, names: str) -> None:
    """Reading fails with `names` in the text, and the store is as it was."""
    before = snapshot(Path(store.uri))
    with pytest.raises(StoreError) as caught:
        store.read(key)
    assert names in str(caught.value)
    assert any(names in problem for problem in store.verify())
    assert snapshot(Path(store.uri)) == before


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files(store: Store, name: str) -> None:
    key = publish(store).key
    path = file_of(store, key, name)
    whole = path.read_bytes()
    for size in sorted({0, 1, 7, 8, 40, len(whole) // 4, len(whole) // 2, len(whole) - 8, len(whole) - 1}):
        path.write_bytes(whole[:size])
        assert_refused(store, key, name)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit(store: Store, name: str) -> None:
    key = publish(store).key
    path = file_of(store, key, name)
    whole = path.read_bytes()
    chance = random.Random(0)
    for offset in [chance.randrange(len(whole) - 1) for _ in range(50)]:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        assert_refused(store, key, name)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "tensors.safetensors", "manifest.json"])
def test_files_of_two_stages_swapped(store: Store, name: str) -> None:
    keys = publish_chain(store, 2)
    paths = [file_of(store, key, name) for key in keys]
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    for key in keys:
        assert_refused(store, key, name)


@pytest.mark.parametrize("name", ["adapter/adapter_model.bin", "adapter/adapter_config.json.bak", "x.safetensors"])
def test_extra_files_are_found(store: Store, name: str) -> None:
    """No reader of raycl's looks at them, but PEFT might."""
    first, second = publish_chain(store, 2)
    path = Path(store.folder(first)) / name
    path.write_bytes(b"\x80\x04.")
    assert [problem for problem in store.verify() if name in problem and "Move it away" in problem]
    assert not any(second in problem for problem in store.verify())
    path.unlink()
    assert store.verify() == []


@pytest.mark.parametrize("name", NAMES[:3])
def test_missing_file_and_folder_in_its_place(store: Store, name: str) -> None:
    key = publish(store).key
    path = file_of(store, key, name)
    path.unlink()
    assert_refused(store, key, name)
    path.mkdir()
    assert_refused(store, key, name)


@pytest.mark.parametrize("name", NAMES)
def test_link_in_place_of_a_file_even_with_the_right_bytes(store: Store, name: str, tmp_path: Path) -> None:
    key = publish(store).key
    path = file_of(store, key, name)
    shutil.move(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert_refused(store, key, name)


def test_two_whole_stages_swapped(store: Store) -> None:
    keys = publish_chain(store, 2)
    first, second = (stage_folder(store, key) for key in keys)
    first.rename(first.with_name("aside"))
    second.rename(first)
    assert_refused(store, keys[0], "it was moved")


# Forged files: every hash agrees, so only the content can give them away


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        tensors = load(data)
        change(tensors)
        return save(tensors)

    return apply


def _spoil(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "empty file": lambda data: b"",
    "40 bytes": lambda data: _header(b"{}" + b" " * 30),
    "no tensors": lambda data: _header(b"{}"),
    "header of 2**63 bytes": lambda data: _header(data[8:], 2**63),
    "header beyond the file": lambda data: _header(data[8:], len(data)),
    "header is no JSON": lambda data: _header(b"x" * 16),
    "a name twice": lambda data: (
        _header(
            b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
        )
        + b"ab"
    ),
    "offsets beyond the data": lambda data: _header(b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "NaN": _changed(_spoil),
    "one more tensor": _changed(lambda tensors: tensors.update(extra=torch.ones(1))),
    "one tensor less": _changed(lambda tensors: tensors.pop(sorted(tensors)[0])),
    "wrong rank": _changed(lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(9, 6)})),
    "three dimensions": _changed(lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(2, 6, 1)})),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_forged_adapter(store: Store, forge: Callable[[bytes], bytes]) -> None:
    key = publish(store).key
    data = file_of(store, key, NAMES[0]).read_bytes()
    forge_content(store, key, NAMES[0], forge(data))
    assert_refused(store, key, "adapter/adapter_")


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "{}",
        '{"r": 2}',
        '{"r": "2", "lora_alpha": 1}',
        '{"r": 0, "lora_alpha": 1}',
        '{"r": 2, "lora_alpha": NaN}',
        '{"r": true, "lora_alpha": 1}',
        '{"r": 3, "lora_alpha": 1}',
        '{"r": 2, "r": 2, "lora_alpha": 1}',
        "\x00",
        "",
    ],
)
def test_forged_adapter_config(store: Store, config: str) -> None:
    key = publish(store).key
    forge_content(store, key, NAMES[1], config.encode())
    assert_refused(store, key, "adapter/adapter_")


def test_forged_nan_among_the_other_tensors(store: Store) -> None:
    key = publish(store).key
    forge_content(store, key, NAMES[2], save({"gate.weight": torch.tensor([float("inf")])}))
    assert_refused(store, key, "gate.weight")


RECORD = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", {"../../../secret.json": RECORD}),
        ("files", {"/etc/passwd": RECORD}),
        ("files", {"adapter/../../x": RECORD}),
        ("files", {"adapter/adapter_model.bin": RECORD}),
        ("files", {"tensors.safetensors\n": RECORD}),
        ("files", {"tensors.safetensors": {**RECORD, "bytes": -1}}),
        ("files", {"tensors.safetensors": {**RECORD, "bytes": "1"}}),
        ("folder", "../../../../tmp/evil"),
        ("folder", "0" * 16),
        ("digest", "0" * 64),
        ("key", "0" * 64),
        ("recipe", {"lr": 1}),
        ("facts", {"kept": []}),
        ("task", "another"),
        ("stage", 0),
        ("stage", True),
        ("parent", "../x"),
        ("schema_version", 2),
        ("schema_version", True),
        ("schema_version", None),
        ("unknown", 1),
    ],
)
def test_forged_manifest(store: Store, field: str, value: Any) -> None:
    key = publish(store).key
    folder = stage_folder(store, key)
    rewrite_manifest(store, key, {field: value})
    before = snapshot(Path(store.uri))
    with pytest.raises(StoreError, match=str(folder / "manifest.json")):
        store.read(key)
    assert snapshot(Path(store.uri)) == before


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 10**5, "1e999", '{"schema_version": 1' + "0" * 5000 + "}"])
def test_manifest_that_is_no_record(store: Store, text: str) -> None:
    key = publish(store).key
    (stage_folder(store, key) / "manifest.json").write_text(text)
    assert_refused(store, key, "manifest.json")


# Fuzzing

TEXT = st.text(max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, bytes]:
    """A store with one stage, its key, and the true bytes of its manifest."""
    store = Store(str(tmp_path_factory.mktemp("fuzz") / "store"))
    key = publish(store).key
    return store, key, (stage_folder(store, key) / "manifest.json").read_bytes()


def _read_or_refuse(store: Store, key: str, manifest: bytes) -> bool:
    (stage_folder(store, key) / "manifest.json").write_bytes(manifest)
    try:
        store.read(key)
    except StoreError:
        return False
    return True


@settings(max_examples=500, deadline=None)
@given(cut=st.integers(0, 10**4), length=st.integers(0, 30), new=st.binary(max_size=30))
def test_fuzzed_manifest_bytes(victim: tuple[Store, str, bytes], cut: int, length: int, new: bytes) -> None:
    store, key, whole = victim
    start = cut % len(whole)
    damaged = whole[:start] + new + whole[start + length :]
    accepted = _read_or_refuse(store, key, damaged)
    assert accepted == (damaged == whole)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from([*Manifest.model_fields, "new"]), value=JSON)
def test_fuzzed_manifest_fields(victim: tuple[Store, str, bytes], field: str, value: Any) -> None:
    store, key, whole = victim
    record = json.loads(whole)
    del record["seal"]
    try:
        forged = seal({**record, field: value})
    except ValueError:
        forged = json.dumps({**record, field: value, "seal": "0" * 64}).encode()
    accepted = _read_or_refuse(store, key, forged)
    # Observations have no second copy to disagree with, and a first stage may get a parent; nothing else may change.
    observations = {"environment", "runtime", "log", "created", "stage", "parent"}
    assert not accepted or field in observations or repr(record[field]) == repr(value)
