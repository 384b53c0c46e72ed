"""The modules in benchmarks/, imported as they import each other when one is run as a script."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from tests.kit.places import ROOT

SCRIPTS = ROOT / "benchmarks"


def script(name: str) -> ModuleType:
    """The module `benchmarks/NAME.py`."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))
