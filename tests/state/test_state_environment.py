"""The environment record: versions without imports, and the commit of the source alone."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import raycl
from raycl.state.environment import describe_environment
from raycl.state.keys import canonical_json


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder with an identity of its own."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_versions_are_json() -> None:
    environment = describe_environment()
    canonical_json(environment)
    assert environment["python"] == ".".join(str(piece) for piece in sys.version_info[:3])
    assert environment["libraries"]["raycl"] == raycl.__version__
    libraries = ("torch", "transformers", "peft", "deepspeed", "ray", "mlflow", "safetensors")
    versions = {name: metadata.version(name) for name in libraries}
    assert environment["libraries"] == versions | {"raycl": raycl.__version__}
    assert environment["platform"] == platform.platform()


def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    assert describe_environment(tmp_path)["git"] is None
    git(tmp_path, "init", "-q")
    assert describe_environment(tmp_path)["git"] is None
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("venv/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    state = describe_environment(tmp_path)["git"]
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "code.py").write_text("a = 2\n")
    assert describe_environment(tmp_path)["git"] == {"commit": state["commit"], "dirty": True}


def test_a_package_in_an_ignored_folder_of_another_project_has_no_commit(tmp_path: Path) -> None:
    test_commit_and_dirty_flag(tmp_path)
    (tmp_path / "venv").mkdir()
    assert describe_environment(tmp_path / "venv")["git"] is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment()["git"] is None
