"""The machine: each fault is planted, found, and comes with its fix."""

from __future__ import annotations

import platform
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from raycl.doctor import machine
from raycl.doctor.finding import Finding, Places
from raycl.models import precision
from raycl.models.precision import Gpu
from tests.kit.places import ROOT

HERE = Places()


def test_a_finding_has_a_fix_unless_all_is_well() -> None:
    """Nobody is told that something is wrong and not what to do."""
    with pytest.raises(ValueError, match="has a fix"):
        Finding("disk", "failed", "full")
    with pytest.raises(ValueError, match="has a fix"):
        Finding("disk", "ok", "roomy", "buy another")


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest one that is taken is the project's."""
    assert machine.python(HERE).outcome == "ok"
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == f">={'.'.join(map(str, machine.OLDEST_PYTHON))}"
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "10", "14"))
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")
    found = machine.python(HERE)
    assert (found.outcome, found.found) == ("failed", "3.10.14, older than 3.11")
    assert "PYTHON=python3.11" in found.fix


def test_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` becomes follows from what the machine multiplies natively; a torch that is not there is a failure."""
    for native in (True, False):
        monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda native=native: native)
        monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
        found = machine.torch(HERE)
        assert found.outcome == "ok"
        assert found.found.startswith(precision.torch.__version__)
        assert f"auto = {'bf16' if native else 'fp32'}" in found.found
        assert ("bf16 is native" in found.found) == native
    monkeypatch.setitem(sys.modules, "raycl.models.precision", None)
    found = machine.torch(HERE)
    assert found.outcome == "failed" and "make setup" in found.fix


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and memory."""
    monkeypatch.setattr(precision, "gpus", lambda: [])
    assert machine.gpus(HERE).found.startswith("none")
    monkeypatch.setattr(precision, "gpus", lambda: [Gpu("NVIDIA H100", 80 * 2**30), Gpu("NVIDIA A100", 40 * 2**30)])
    assert machine.gpus(HERE).found == "NVIDIA H100, 80 GiB; NVIDIA A100, 40 GiB"


def test_a_missing_compiler_matters_on_a_gpu_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with nothing on it; then one with ninja, and one with both."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setattr(precision, "gpus", lambda: [])
    found = machine.compiler(HERE)
    assert found.outcome == "ok" and "not needed" in found.found and "found: none" in found.found
    monkeypatch.setattr(precision, "gpus", lambda: [Gpu("NVIDIA H100", 80 * 2**30)])
    found = machine.compiler(HERE)
    assert found.outcome == "warning"
    assert found.found.startswith("a C++ compiler and ninja not found")
    assert "g++ ninja-build" in found.fix and "train.engine=torch" in found.fix
    for name, left in (("ninja", "a C++ compiler not found"), ("g++", str(tmp_path / "g++"))):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert machine.compiler(HERE).found.startswith(left)
    assert machine.compiler(HERE).outcome == "ok"
