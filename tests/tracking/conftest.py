"""One database of a module's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space, as users have them."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    """An SQLite database in it."""
    return f"sqlite:///{folder / 'sub' / 'mlflow.db'}"
