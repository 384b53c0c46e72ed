"""How a run finds or starts Ray, with Ray itself replaced by a stand-in."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raycl import cluster
from raycl.errors import SetupError


class Starts:
    """Stands in for ray.init: fails the first `failures` times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, []

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        if len(self.calls) <= self.failures:
            raise self.error


@pytest.fixture(autouse=True)
def lonely(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named, and none was started here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "started_here", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def replaced(monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception) -> Starts:
    """Put a stand-in where ray.init is."""
    starts = Starts(failures, error)
    monkeypatch.setattr(ray, "init", starts)
    monkeypatch.setenv(cluster.OWN, "")
    return starts


def test_ray_still_notes_where_ray_start_was(tmp_path: Path) -> None:
    """The one private part of Ray that raycl uses: it reads the address from a file, and gives none where there is none."""
    message = "Ray moved services.find_bootstrap_address: see raycl/run/cluster.py started_here"
    services = importlib.import_module("ray._private.services")
    find = getattr(services, "find_bootstrap_address", None)
    assert callable(find), message
    assert find(str(tmp_path)) is None, message
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert find(str(tmp_path)) == "10.0.0.1:6379", message


def test_another_programs_cluster_is_never_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RAY_ADDRESS and `ray start` a run has a cluster of its own; `auto` would find any other on the machine."""
    starts = replaced(monkeypatch, 0, RuntimeError())
    assert not cluster.attach()
    cluster.start_cluster()
    assert [call["address"] for call in starts.calls] == ["local"]
    assert starts.calls[0]["include_dashboard"] is False


def test_a_named_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS, as `ray job submit` sets it, wins over what `ray start` noted."""
    starts = replaced(monkeypatch, 0, RuntimeError())
    monkeypatch.setattr(cluster, "started_here", lambda: "10.0.0.1:6379")
    assert cluster.attach()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster.attach()
    assert [call["address"] for call in starts.calls] == ["10.0.0.1:6379", "10.0.0.2:6379"]


def test_a_cluster_is_ones_own_until_another_one_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this process; what another one, which started the cluster at hand, has left to its children stays."""
    replaced(monkeypatch, 0, RuntimeError())
    assert not cluster.is_own()
    cluster.start_cluster()
    assert cluster.is_own()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster.attach() and not cluster.is_own()
    monkeypatch.setenv(cluster.OWN, "1")
    assert cluster.attach() and cluster.is_own()


def test_a_named_cluster_that_is_away_is_a_set_up_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user asked for it, so nothing is started in its place; a note of `ray start` may be stale."""
    replaced(monkeypatch, 9, ConnectionError())
    monkeypatch.setattr(cluster, "started_here", lambda: "10.0.0.1:6379")
    assert not cluster.attach()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    with pytest.raises(SetupError, match=r"RAY_ADDRESS=10\.0\.0\.2:6379"):
        cluster.attach()


def test_what_must_outlive_other_nodes_is_put_beside_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this process's node and no other, where it takes no worker's CPU."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a" * 56))
    options: dict[str, Any] = cluster.beside_driver()
    assert options["num_cpus"] == 0
    assert (options["scheduling_strategy"].node_id, options["scheduling_strategy"].soft) == ("a" * 56, False)


def test_a_slow_start_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need more than Ray's 30 s; after two tries the message names a way without Ray's workers."""
    slow = Exception("The current node timed out during startup. ...")
    starts = replaced(monkeypatch, 1, slow)
    cluster.start_cluster()
    assert len(starts.calls) == 2
    starts = replaced(monkeypatch, 2, slow)
    with pytest.raises(SetupError, match="--workers 0"):
        cluster.start_cluster()
    assert len(starts.calls) == 2


def test_another_failure_to_start_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a timeout is tried again."""
    starts = replaced(monkeypatch, 1, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        cluster.start_cluster()
    assert len(starts.calls) == 1
