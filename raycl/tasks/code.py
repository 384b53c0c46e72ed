"""Metrics that are Python functions of the user's: found beside the stream's file or on the import path, run only with
`--allow-code`, and in the key with their source."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl.errors import DataError, first_line
from raycl.files import reach

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Code:
    """Where the function behind a metric is found, and what its source was when the run was planned."""

    folder: str | None
    """Looked in before the import path: that of the stream's file."""
    sha256: str


def is_code(metric: str) -> bool:
    """Whether a metric's name is that of a function, `module:name`."""
    return _PLACE.fullmatch(metric) is not None


def find_code(metric: str, folder: str | None) -> Code:
    """The function's place, and the SHA-256 of its module's source file; imports the module.

    Raises DataError for a module that cannot be imported, and for one without that function.
    """
    reach([folder] if folder else [])
    source = inspect.getsourcefile(_function(metric)) or ""
    try:
        return Code(folder, hashlib.sha256(Path(source).read_bytes()).hexdigest())
    except OSError:
        raise DataError(
            f"metric {metric!r}: its source cannot be read; next step: define it in a Python file"
        ) from None


def require_code(codes: Mapping[str, Code]) -> None:
    """Make sure that this process has the functions that the run was planned with. Raises DataError."""
    for metric, code in codes.items():
        if find_code(metric, code.folder) != code:
            raise DataError(
                f"metric {metric!r}: its source here is not the one that the run was planned with; use one copy"
            )


@functools.cache
def _function(metric: str) -> Callable[[str, Sequence[str]], Any]:
    module, _, name = metric.partition(":")
    step = "put the file beside the stream's file, or on PYTHONPATH"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module raises
        raise DataError(
            f"metric {metric!r}: module {module} cannot be imported ({type(error).__name__}: {first_line(error)}); "
            f"next step: {step}"
        ) from None
    if not callable(found):
        where = getattr(sys.modules[module], "__file__", None)
        raise DataError(f"metric {metric!r}: module {module} ({where}) has no function {name}; next step: {step}")
    return found


def own_measure(metric: str) -> Callable[[str, Sequence[str]], float]:
    """The function behind a metric, its results checked. Raises DataError as `find_code`, and for a wrong result."""
    function = _function(metric)

    def measure(prediction: str, answers: Sequence[str]) -> float:
        try:
            value = float(function(prediction, list(answers)))
        except Exception as error:  # whatever the user's function raises
            raise DataError(
                f"metric {metric!r}: fails on the prediction {prediction[:60]!r} "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise DataError(f"metric {metric!r}: gives {value} for {prediction[:60]!r}; allowed: 0 to 1")
        return value

    return measure
