"""Adapters from elsewhere in a store: found by what they are, and never taken for another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raycl.errors import StoreError
from raycl.state.stage_state import Branch
from raycl.state.store import Store

BASE = "f" * 64
"""The fingerprint of a base model."""


def branch(value: float = 1.0, alpha: float = 2.0) -> Branch:
    """A branch of rank 1 on one module."""
    return Branch(1, alpha, {"layer.q": torch.full((1, 3), value)}, {"layer.q": torch.ones(2, 1)})


def test_what_is_equal_has_one_key_and_comes_back(tmp_path: Path) -> None:
    """Bit for bit; another number, another alpha or another base model is another adapter."""
    store = Store(str(tmp_path / "store"))
    key = store.write_import(branch(), BASE)
    assert store.write_import(branch(), BASE) == key
    others = {
        store.write_import(branch(1.5), BASE),
        store.write_import(branch(alpha=3.0), BASE),
        store.write_import(branch(), "x"),
    }
    assert len({key, *others}) == 4
    back, base = store.read_import(key)
    assert base == BASE
    assert (back.rank, back.alpha) == (1, 2.0) and torch.equal(back.a["layer.q"], branch().a["layer.q"])
    assert store.stage_keys() == [] and store.verify() == []


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    """With what to do about it, before anything is read of it; numbers that are none are not taken in."""
    store = Store(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="raycl import-adapter"):
        store.read_import("0" * 64)
    with pytest.raises(StoreError, match="not a content key"):
        store.read_import("../elsewhere")
    with pytest.raises(StoreError, match="NaN or infinite"):
        store.write_import(branch(float("nan")), BASE)
    key, other = store.write_import(branch(), BASE), store.write_import(branch(2.0), BASE)
    one, two = (
        next((tmp_path / "store/imported").rglob(f"{name}/adapter/adapter_model.safetensors")) for name in (key, other)
    )
    one.write_bytes(two.read_bytes())
    with pytest.raises(StoreError, match="is damaged"):
        store.read_import(key)
