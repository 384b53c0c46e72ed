"""Fixtures of the store's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.state.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store in a temporary folder."""
    return Store(str(tmp_path / "store"))
