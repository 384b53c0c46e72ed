"""What a result was made with: library versions, platform, and the git commit of the source."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from raycl import __version__
from raycl.files import checkout

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "ray", "mlflow", "safetensors")
GIT_SECONDS = 10


def describe_environment(root: Path | None = None) -> dict[str, Any]:
    """Versions as JSON: python, platform, libraries {name: version or null}, git {commit, dirty} or null.

    `root` is a folder of the source checkout; none means the checkout raycl is imported from. `dirty` says whether a file
    below it differs from the commit. Outside a checkout, or without git, `git` is null. Imports no library.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {"raycl": __version__, **{name: _version(name) for name in LIBRARIES}},
        "git": _git_state(root or checkout()),
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _git_state(root: Path) -> dict[str, Any] | None:
    # An installed package may lie in an ignored folder of some other project's checkout: that commit says nothing.
    if not _git(root, "ls-files", "--", "."):
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            # Reading must not take the lock that a commit made at the same time needs.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
