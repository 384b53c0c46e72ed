"""Where raycl keeps its files unless told otherwise: RAYCL_HOME, or `~/.raycl`."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The absolute home folder; it may not exist yet."""
    return Path(os.environ.get("RAYCL_HOME") or "~/.raycl").expanduser().resolve()
