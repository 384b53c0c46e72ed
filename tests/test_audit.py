"""`make audit`: strict, over the whole lock, but for findings with a reason."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.kit.places import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """The program."""
    spec = importlib.util.spec_from_file_location("audit_program", ROOT / "benchmarks" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_finding_is_of_a_locked_package_and_has_a_reason(audit: ModuleType) -> None:
    """What is not in the lock any more is no finding any more."""
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {one["package"] for one in audit.findings()} <= locked


def test_a_finding_without_a_reason_is_an_error(audit: ModuleType, tmp_path: Path) -> None:
    """Nothing is passed over in silence."""
    (tmp_path / "audit.json").write_text(json.dumps({"findings": [{"id": "GHSA-x", "package": "ray", "reason": " "}]}))
    with pytest.raises(ValueError, match="reason"):
        audit.findings(tmp_path / "audit.json")


def test_the_command_is_strict_and_leaves_out_what_was_looked_at(audit: ModuleType) -> None:
    """A package that cannot be looked up is no clean one."""
    line = audit.command([{"id": "GHSA-x", "package": "ray", "reason": "not used"}])
    assert "--strict" in line and str(ROOT / "requirements.lock") in line
    assert line[-2:] == ["--ignore-vuln", "GHSA-x"]
