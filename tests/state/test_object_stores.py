"""A store behind a URI: uploads that fail in the middle, listings that lag behind, two writers, an S3-compatible server."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from raycl.errors import StoreError
from raycl.state.store import Store
from tests.kit.state_samples import make_part, publish, publish_chain, same_part

KEY = "ab" * 32
NAMES = itertools.count()


class Unsteady(MemoryFileSystem):
    """An object store in memory: each upload is whole or absent, some fail, and listings show the state of a while ago."""

    protocol = "unsteady"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails_at: ClassVar[int | None] = None
    """Which upload from now on fails; none = none does."""
    lags: ClassVar[bool] = False
    seen: ClassVar[set[str]] = set()
    """What listings show while they lag."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        """An upload."""
        if Unsteady.fails_at is not None:
            if Unsteady.fails_at == 0:
                raise RuntimeError("connection reset in the middle of the upload")
            Unsteady.fails_at -= 1
        super().pipe_file(path, value, mode, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        """A listing."""
        found = super().ls(path, detail=True, **more)
        if Unsteady.lags:
            found = [one for one in found if any(name.startswith(one["name"]) for name in Unsteady.seen)]
        return found if detail else [one["name"] for one in found]


@pytest.fixture
def store() -> Iterator[Store]:
    """A store in an empty place of its own."""
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    Unsteady.fails_at, Unsteady.lags, Unsteady.seen = None, False, set()
    yield Store(f"unsteady://store-{next(NAMES)}")
    Unsteady.fails_at, Unsteady.lags = None, False


def uploads(store: Store) -> int:
    """How many uploads a stage takes."""
    Unsteady.fails_at = 1000
    publish(store)
    used = 1000 - Unsteady.fails_at
    Unsteady.fails_at = None
    return used


def test_an_upload_that_fails_anywhere_leaves_no_stage(store: Store) -> None:
    """Whichever of its files it is: the stage is absent, the others are whole, and the same call makes it."""
    first = publish(store).key
    needed = uploads(Store(f"unsteady://count-{next(NAMES)}")) - 2  # marker and probe are there
    assert needed >= 4
    for failing in range(needed):
        Unsteady.fails_at = failing
        with pytest.raises(StoreError, match="connection reset"):
            publish(store, 2, first)
        Unsteady.fails_at = None
        assert store.stage_keys() == [first] and store.verify() == []
    made = publish(store, 2, first)
    assert same_part(store.read(made.key), make_part(2)) and store.verify() == []


@pytest.mark.parametrize("failing", [0, 1])
def test_scores_and_checkpoints_are_whole_or_as_they_were(store: Store, failing: int) -> None:
    """A row is absent; of a checkpoint the old one stays in force."""
    store.write_partial(KEY, {"x": torch.zeros(3)}, {"step": 1})
    Unsteady.fails_at = failing
    with pytest.raises(StoreError):
        store.write_scores(KEY, {"score": 1.0}, [{"prediction": "a"}])
    Unsteady.fails_at = failing
    with pytest.raises(StoreError):
        store.write_partial(KEY, {"x": torch.ones(3)}, {"step": 2})
    Unsteady.fails_at = None
    assert not store.has_scores(KEY)
    kept = store.read_partial(KEY)
    assert kept is not None and kept[1] == {"step": 1} and kept[0]["x"].sum() == 0


def test_a_lagging_listing_hides_stages_and_never_shows_half_of_one(store: Store) -> None:
    """Keys are asked for by name, which object stores answer from what was written last; listings only count."""
    keys = publish_chain(store, 2)
    Unsteady.seen = set(Unsteady.store)
    Unsteady.lags = True
    late = publish(store, 3, keys[-1]).key
    assert store.stage_keys() == sorted(keys)
    assert store.has(late) and same_part(store.read(late), make_part(3))
    assert store.lineage(late) == [*keys, late]
    assert [part.task for part in store.read_state(late).parts] == [store.manifest(key).task for key in [*keys, late]]
    assert store.verify() == []
    Unsteady.lags = False
    assert store.stage_keys() == sorted([*keys, late])


def test_a_listing_that_shows_what_is_not_there_any_more_is_no_stage(store: Store) -> None:
    """The folder of a stage whose manifest is not there yet."""
    key = publish(store).key
    for name in [name for name in Unsteady.store if name.endswith("manifest.json")]:
        Unsteady.store.pop(name)
    assert store.stage_keys() == [] and not store.has(key) and store.verify() == []
    assert same_part(store.read(publish(store).key), make_part(1))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3-compatible server of this test's own."""
    for needed in ("moto", "s3fs", "flask"):
        pytest.importorskip(needed, reason="uv pip install --group s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.mark.slow
def test_a_store_on_an_s3_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages, scores, checkpoints, verification, repair: the same as in a folder."""
    for name, value in (("KEY", "a"), ("SECRET", "b"), ("ENDPOINT_URL", s3)):
        monkeypatch.setitem(fsspec.config.conf.setdefault("s3", {}), name.lower(), value)
    fsspec.filesystem("s3").mkdir("bucket")
    store = Store(f"s3://bucket/{os.getpid()}")
    keys = publish_chain(store, 3)
    store.write_scores(KEY, {"score": 1.0}, [{"prediction": "a"}])
    store.write_partial(KEY, {"x": torch.ones(3)}, {"step": 2})
    again = Store(store.uri)
    assert again.stage_keys() == sorted(keys) and again.lineage(keys[-1]) == keys
    assert same_part(again.read(keys[0]), make_part(1))
    assert again.read_predictions(KEY) == [{"prediction": "a"}]
    kept = again.read_partial(KEY)
    assert kept is not None and kept[1] == {"step": 2}
    assert again.verify() == []
