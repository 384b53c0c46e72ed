"""Places of another user: what cannot be read or written is named in one message, never a traceback."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from raycl.sequence.job import known_fingerprint
from raycl.state.store import Store
from tests.kit import users
from tests.kit.cli import Answer, invoke
from tests.kit.layout_files import WRITERS


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may look into; pytest's own are the owner's alone."""
    folder = Path(tempfile.mkdtemp(prefix="raycl-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(place: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Answer]:
    """`raycl run` of one user on data, a model and a store of another one."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("RAYCL_HOME", str(place / "home"))
    monkeypatch.setattr("raycl.sequence.chronicle.Chronicle.start", _never)
    WRITERS["benchmark"](place / "data")
    shutil.copytree(tiny_folders["llama"], place / "model")
    Store(str(place / "store")).check_usable()
    for path in [*place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for own in ("home", "out", "shared"):
        (place / own).mkdir()
        if os.geteuid() == 0:
            os.chown(place / own, users.NOBODY, users.NOBODY)

    def answer(*more: object) -> Answer:
        flags: dict[str, Any] = {"order": "sst2", "data": place / "data", "model": place / "model", "workers": 0}
        flags |= {"store": place / "shared", "output": place / "out", "preset": "laptop", "tracking": "off"}
        given = [part for name, value in flags.items() for part in (f"--{name}", value)]
        with users.nobody():
            return invoke("run", [*given, *more])

    # What is imported on first use comes from folders of the tests' own user: so it is imported before.
    monkeypatch.setenv("RAYCL_HOME", str(place / "warm"))
    with pytest.MonkeyPatch.context() as warm:
        warm.setattr(users, "nobody", nullcontext)
        assert answer("--store", place / "warm-store", "--output", place / "warm-out").code == 1  # as far as `_never`
    monkeypatch.setenv("RAYCL_HOME", str(place / "home"))
    known_fingerprint.cache_clear()  # of the model, which nobody has looked at yet
    return answer


def _never(*arguments: Any) -> None:
    raise AssertionError("the sequence was started")


@pytest.mark.parametrize(
    "closed",
    ["data", "data/sst2", "data/sst2/train.jsonl.gz", "data/sst2/labels.json", "model", "model/config.json",
     "model/model.safetensors"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(place: Path, run: Callable[..., Answer], closed: str) -> None:
    """The path, what the system says, and the next step."""
    if os.geteuid() == 0:
        os.chown(place / closed, 0, 0)
    (place / closed).chmod(0o000)
    result = run()
    (place / closed).chmod(0o755)
    assert result.code == 2, result.output[-2000:]
    assert "Traceback" not in result.output
    assert str(place / closed) in result.stderr
    assert "next step" in result.stderr


def test_a_store_of_another_user_is_named(place: Path, run: Callable[..., Answer]) -> None:
    """It can be read but not written."""
    result = run("--store", place / "store")
    assert result.code == 2 and "Traceback" not in result.output
    assert str(place / "store") in result.stderr and "permissions" in result.stderr
