"""Ray and the store on its nodes, with stand-ins for clusters; tests/sequence/test_three_nodes.py has real ones."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycl import cluster
from raycl.doctor import cluster as checks
from raycl.doctor.finding import Places
from raycl.errors import SetupError
from raycl.state.probe import Probe
from tests.kit.cluster import free_ports


@pytest.fixture
def listening() -> Iterator[str]:
    """An address that takes connections."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def lonely(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named, and none was started here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "started_here", lambda: None)


def stand_in(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], **answers: Any) -> None:
    """A cluster of these nodes."""
    replaced = {"attach": lambda: True, "joined": lambda: True, "nodes": lambda: nodes} | answers
    for name, value in replaced.items():
        monkeypatch.setattr(cluster, name, value)


def test_no_cluster_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run starts one; how tokens are meant is said."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = checks.ray(Places())
    assert found.outcome == "ok"
    assert "starts one here" in found.found and "RAY_AUTH_MODE=token" in found.found


def test_an_address_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a connection, without Ray's minute."""
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(cluster, "attach", _never)
    found = checks.ray(Places())
    assert checks.store_on_nodes(Places(store="/shared/store")) is None
    assert (found.outcome, found.found) == ("failed", f"127.0.0.1:{port}: nobody answers")
    assert "ray start --head" in found.fix and "--workers 0" in found.fix


def test_answers(listening: str) -> None:
    """Each form of an address; one without a port is left to Ray."""
    (port,) = free_ports(1)
    for form in ("{}", "ray://{}", "ray://{}/namespace"):
        assert cluster.answers(form.format(listening))
        assert not cluster.answers(form.format(f"127.0.0.1:{port}"))
    assert not cluster.answers(f"[::1]:{port}")
    assert cluster.answers("auto")


def test_what_takes_the_connection_and_is_no_cluster(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray says of it; the token is named among the fixes. A note that is stale is a warning."""
    monkeypatch.setenv("RAY_ADDRESS", listening)
    monkeypatch.setattr(cluster, "attach", _refused)
    found = checks.ray(Places())
    assert found.outcome == "failed" and "SetupError: no Ray cluster answers" in found.found
    assert "RAY_AUTH_MODE=token" in found.fix
    monkeypatch.setattr(cluster, "attach", lambda: False)
    found = checks.ray(Places())
    assert found.outcome == "warning" and "ray stop" in found.fix


def test_where_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in one process do without it."""
    monkeypatch.setitem(sys.modules, "raycl.cluster", None)
    found = checks.ray(Places())
    assert found.outcome == "warning" and "--workers 0" in found.fix
    assert checks.store_on_nodes(Places(store="/shared/store")) is None


def test_a_cluster_that_answers(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it holds."""
    monkeypatch.setenv("RAY_ADDRESS", listening)
    stand_in(monkeypatch, [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}])
    assert f"{listening}: 2 nodes, 12 CPUs, 2 GPUs" in checks.ray(Places()).found


def test_a_store_that_not_all_nodes_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes that do not, each with what it said; looked at only where a store is given and there are several nodes."""
    places = Places(store=str(tmp_path))
    stand_in(monkeypatch, [{"CPU": 1.0}])
    assert checks.store_on_nodes(places) is None
    answers: dict[str, object] = {"a": True, "b": True}
    stand_in(monkeypatch, [{"CPU": 1.0}] * 3, on_each_node=lambda call, seconds: answers | {"c": call()})
    assert checks.store_on_nodes(Places()) is None
    found = checks.store_on_nodes(places)
    assert found is not None and (found.outcome, found.found) == ("ok", f"all 3 nodes see {tmp_path}")
    answers |= {"b": False, "a": ModuleNotFoundError("No module named 'raycl'")}
    found = checks.store_on_nodes(places)
    assert found is not None and found.outcome == "failed"
    assert found.found == f"2 of 3 nodes do not see {tmp_path}: a: No module named 'raycl'; b: does not see it"
    assert "mounted at the same path" in found.fix
    assert list(tmp_path.iterdir()) == []


def test_a_probe_is_seen_where_it_lies(tmp_path: Path) -> None:
    """Not in another place, and not after it was taken away."""
    with Probe.left(str(tmp_path / "one")) as probe:
        assert probe.seen()
        assert not Probe(str(tmp_path / "two"), probe.name, probe.content).seen()
        assert not Probe(probe.uri, probe.name, "other").seen()
    assert not probe.seen()


def _never() -> bool:
    raise AssertionError("Ray was asked")


def _refused() -> bool:
    raise SetupError("no Ray cluster answers there")
