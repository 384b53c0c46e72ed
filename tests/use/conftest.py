"""Shared by the tests of states in use: short sequences, each trained once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.figures import no_figures
from tests.kit.trained import Trained, chatting


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    """Sequences are run for their states."""
    with no_figures():
        yield


@pytest.fixture(scope="session")
def trained(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The output folder of a short sequence of a method."""
    return Trained(model_folders, tmp_path_factory.mktemp("use"))


@pytest.fixture(scope="session")
def trained_chats(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same, on a model whose tokenizer has a chat template."""
    return chatting(model_folders, tmp_path_factory.mktemp("chats"))
