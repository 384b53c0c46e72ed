"""Rows of scores and mid-stage checkpoints: whole, verified, and replaced or kept as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.errors import StoreError
from raycl.state.keys import content_key
from raycl.state.store import Store
from tests.kit.state_samples import snapshot

KEY = content_key({"row": 1})
OTHER = content_key({"row": 2})
ROWS = [{"id": "1", "text": "a\u2028b\r\nc"}, {"id": "2", "text": "é"}]


def test_a_row_comes_back(store: Store) -> None:
    assert not store.has_scores(KEY)
    store.write_scores(KEY, {"score": 0.25, "examples": 4}, ROWS)
    assert store.has_scores(KEY) and not store.has_scores(OTHER)
    assert store.read_scores(KEY) == {"score": 0.25, "examples": 4}
    assert store.read_predictions(KEY) == ROWS
    assert store.verify() == []


def test_a_row_is_written_once(store: Store) -> None:
    store.write_scores(KEY, {"score": 0.25}, ROWS)
    before = snapshot(Path(store.uri))
    store.write_scores(KEY, {"score": 0.75}, [])
    assert snapshot(Path(store.uri)) == before


def test_an_absent_row_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match=r"scores\.json is missing"):
        store.read_scores(KEY)


@pytest.mark.parametrize("name", ["scores.json", "predictions.jsonl"])
def test_a_damaged_row_is_refused(store: Store, name: str) -> None:
    store.write_scores(KEY, {"score": 0.25}, ROWS)
    path = next(Path(store.uri).rglob(name))
    whole = path.read_bytes()
    for damaged in (b"", whole[:-3], whole.replace(b"2", b"3")):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=name):
            store.read_predictions(KEY)
        assert len(store.verify()) == 1


def test_a_moved_row_is_refused(store: Store) -> None:
    store.write_scores(KEY, {"score": 0.25}, ROWS)
    folder = next(Path(store.uri).rglob("scores.json")).parent
    target = Path(store.uri) / "scores" / OTHER[:2]
    target.mkdir(parents=True, exist_ok=True)
    folder.rename(target / OTHER)
    with pytest.raises(StoreError, match="it was moved"):
        store.read_scores(OTHER)


@pytest.mark.parametrize("record", [{"score": float("nan")}, {"scores": (1, 2)}])
def test_a_row_json_cannot_hold_is_refused(store: Store, record: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.write_scores(KEY, record, [])
    assert not store.has_scores(KEY)


def test_the_newest_checkpoint_replaces_the_older(store: Store) -> None:
    assert store.read_partial(KEY) is None
    for step in (1, 2):
        store.write_partial(KEY, {"w": torch.full((2,), float(step)), "n": torch.tensor(step)}, {"step": step})
    tensors, facts = store.read_partial(KEY)
    assert facts == {"step": 2} and tensors["w"].tolist() == [2.0, 2.0] and tensors["n"].dtype == torch.int64
    assert len(list(Path(store.uri).rglob("*.safetensors"))) == 1
    assert store.stage_keys() == []


def test_writing_the_same_checkpoint_twice_keeps_it(store: Store) -> None:
    for _ in range(2):
        store.write_partial(KEY, {"w": torch.ones(2)}, {"step": 1})
    assert store.read_partial(KEY)[1] == {"step": 1}


def test_a_dropped_checkpoint_is_gone(store: Store) -> None:
    store.drop_partial(KEY)
    store.write_partial(KEY, {"w": torch.ones(2)}, {})
    store.drop_partial(KEY)
    assert store.read_partial(KEY) is None
    assert not list(Path(store.uri).rglob("*.safetensors"))


@pytest.mark.parametrize("pattern", ["partial.json", "*.safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-9] + b"#" + data[-8:]]
)
def test_a_damaged_checkpoint_is_ignored_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, pattern: str, damage: Any
) -> None:
    store.write_partial(KEY, {"w": torch.ones(2)}, {"step": 1})
    path = next(Path(store.uri).rglob(pattern))
    path.write_bytes(damage(path.read_bytes()))
    assert store.read_partial(KEY) is None
    assert path.name in caplog.text


@pytest.mark.parametrize("pattern", ["partial.json", "*.safetensors"])
def test_a_link_in_place_of_a_checkpoint_is_ignored(store: Store, tmp_path: Path, pattern: str) -> None:
    store.write_partial(KEY, {"w": torch.ones(2)}, {"step": 1})
    path = next(Path(store.uri).rglob(pattern))
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert store.read_partial(KEY) is None
