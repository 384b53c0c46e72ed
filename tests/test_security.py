"""What listens listens on this machine alone, unless its user says otherwise; what the security page says is so."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray
import yaml

from raycl import cluster, reading
from raycl.cli.serve import serve
from raycl.tasks.templates import LONGEST
from tests.kit.places import ROOT


def test_the_server_listens_on_this_machine() -> None:
    """By default."""
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def test_a_cluster_of_a_run_has_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves Ray's token authentication as it is."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster, "attach", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **flags: said.append(flags))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    cluster.start_cluster()
    assert [flags["include_dashboard"] for flags in said] == [False]
    assert "RAY_AUTH_MODE" not in cluster.os.environ


def test_the_deployed_places_listen_on_loopback() -> None:
    """MLflow's port of the Compose file, Ray's dashboard of the launcher's."""
    ports = [
        port
        for service in yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"].values()
        for port in service.get("ports", [])
    ]
    assert ports and all(str(port).startswith("127.0.0.1:") for port in ports)
    starts = [
        line for line in (ROOT / "deploy" / "ray-cluster.yaml").read_text().splitlines() if "start --head" in line
    ]
    assert starts and all("--dashboard-host=127.0.0.1" in line and "RAY_AUTH_MODE=token" in line for line in starts)


def test_the_security_page_names_the_limits_that_hold() -> None:
    """The figures in its table are the program's."""
    page = (ROOT / "SECURITY.md").read_text()
    for words in (
        f"{reading.NODES:,} values, {reading.DEPTH} deep, {reading.YAML[1]} MiB",
        f"{reading.TEXT[1]} MiB (`{reading.TEXT[0]}`)",
        f"{LONGEST // 1_000_000} million characters",
    ):
        assert words in page
