"""Where a model's files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from raycl.models.places import at_hand
from raycl.sections import ModelSpec

HUB = ModelSpec(name="owner/base", revision="main")


@pytest.mark.parametrize(("files", "here"), [(["model.safetensors", "config.json"], True), (["config.json"], False)])
def test_a_hub_model_is_at_hand_if_its_weights_are(
    files: list[str], here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched to find that out."""
    for name in files:
        (tmp_path / name).touch()
    asked: list[tuple[Any, ...]] = []

    def snapshot(name: str, revision: str | None, local_files_only: bool) -> str:
        asked.append((name, revision, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert at_hand(HUB) is here
    assert asked == [("owner/base", "main", True)]


def test_a_hub_model_that_nobody_has_fetched_is_not_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_: Any, **__: Any) -> str:
        raise OSError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert at_hand(HUB) is False
    assert at_hand(ModelSpec()) is True, "the packaged model is"
