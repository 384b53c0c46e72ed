"""`raycl doctor`: lines and JSON, exit codes, and that one broken check does not hide the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import raycl
from raycl.doctor import run
from raycl.doctor.finding import Finding, Places
from raycl.report.doctor import print_findings, verdict
from tests.kit.cli import invoke
from tests.kit.cluster import free_ports
from tests.kit.places import ROOT

GOOD = Finding("python", "ok", "3.11.7")
BAD = Finding("disk", "failed", "0.1 GiB free at /data", "free some space there")
POOR = Finding("hub", "warning", "[no] markup", "check the connection")


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet mode would silence the other tests' loggers as well."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_line_each_with_the_fix_below() -> None:
    """In the order of the checks, and a last line over all."""
    out = io.StringIO()
    assert print_findings(iter([GOOD, BAD, POOR]), Console(file=out, width=60)) == [GOOD, BAD, POOR]
    assert out.getvalue().splitlines() == [
        "python          ok       3.11.7",
        "disk            failed   0.1 GiB free at /data",
        "                fix      free some space there",
        "hub             warning  [no] markup",
        "                fix      check the connection",
        "1 to mend before a run; 1 warning",
    ]
    assert verdict([GOOD]) == "a run would start"


def test_a_check_that_breaks_is_a_finding() -> None:
    """The others are heard; what has nothing to say is left out."""

    def broken_one(places: Places) -> Finding:
        raise RuntimeError("a bug")

    def bare(places: Places) -> Finding:
        raise ModuleNotFoundError("No module named 'peft'")

    found = list(run.findings([broken_one, lambda places: None, bare, lambda places: GOOD], Places()))
    assert [one.check for one in found] == ["broken one", "bare", "python"]
    assert "'peft'" in found[1].found and "make setup" in found[1].fix
    assert found[0].outcome == "failed" and found[0].found == "RuntimeError: a bug" and "open an issue" in found[0].fix


def test_the_command_ends_with_2_where_a_run_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick checks on this machine, as lines and as JSON, and from Python the same."""
    store = tmp_path / "store"
    done = invoke("doctor", ["--quick", "--store", store, "--tracking", "off"])
    assert done.code == 0, done.output
    names = [line[:15].strip() for line in done.stdout.splitlines()[:-1] if not line.startswith(" ")]
    expected = [
        "python",
        "torch",
        "gpus",
        "compiler",
        "deepspeed",
        "store",
        "disk",
        "tracking",
        "hub",
        "packaged model",
    ]
    assert names == expected
    from_python = [one.check for one in raycl.examine(raycl.Places(str(store), "off"), quick=True)]
    assert from_python == expected
    (port,) = free_ports(1)
    done = invoke(
        "doctor", ["--quick", "--json", "--store", ROOT / "README.md", "--tracking", f"http://127.0.0.1:{port}"]
    )
    assert done.code == 2
    found = json.loads(done.stdout)
    assert found["ok"] is False
    failed = {one["check"]: one for one in found["findings"] if one["outcome"] == "failed"}
    assert set(failed) == {"store", "tracking"}
    assert all(one["fix"] for one in failed.values())


def test_the_thorough_checks_follow_the_quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray, the store on its nodes, the gradients."""
    seen: list[str] = []

    def noted(name: str) -> run.Check:
        return lambda places: seen.append(name)

    monkeypatch.setattr(run, "QUICK", (noted("quick"),))
    monkeypatch.setattr(run, "THOROUGH", tuple(noted(check.__name__) for check in run.THOROUGH))
    assert list(run.examine(quick=True)) == [] and seen == ["quick"]
    assert list(run.examine()) == []
    assert seen == ["quick", "quick", "ray", "store_on_nodes", "gradients"]
