"""A measurement for tests of benchmarks, in a module that a process of its own is quick to import."""

from __future__ import annotations

import os
from typing import Any

from tests.kit.scripts import script


def by_process() -> Any:
    """A figure with the number of its process as value."""
    return script("performance_cell").Figure(float(os.getpid()), details={"note": "by hand"})
