"""Metrics that are Python functions of the user's: found beside the stream's file, else on the import path, run only with
`--allow-code`, and in the key with their source.

Streams in two folders may each have a `scorers.py`, and a file may change while a notebook is open. So a file beside a
stream is no module of that name but one of its own for each text that it had.
"""

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
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raycl.errors import DataError, first_line, shown
from raycl.files import reach

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Code:
    """Where the function behind a metric is found, and what its source was when the run was planned."""

    folder: str | None
    """That of the stream's file: looked in before the import path."""
    sha256: str


def is_code(metric: str) -> bool:
    """Whether a metric's name is that of a function, `module:name`."""
    return _PLACE.fullmatch(metric) is not None


def find_code(metric: str, folder: str | None) -> Code:
    """The function's place, and the SHA-256 of its module's source file; imports the module.

    Raises DataError for a module that cannot be imported, and for one without that function.
    """
    reach([folder] if folder else [])  # what the file itself imports from beside it
    beside = _beside(metric, folder)
    try:
        source = beside or Path(inspect.getsourcefile(_imported(metric)) or "")
        code = Code(folder, hashlib.sha256(source.read_bytes()).hexdigest())
    except (OSError, TypeError):
        raise DataError(
            f"metric {shown(metric)}: its source cannot be read; next step: define it in a Python file"
        ) from None
    _function(metric, code)
    return code


def require_code(codes: Mapping[str, Code]) -> None:
    """Make sure that this process has the functions that the run was planned with. Raises DataError."""
    for metric, code in codes.items():
        if find_code(metric, code.folder) != code:
            raise DataError(
                f"metric {shown(metric)}: its source here is not the one that the run was planned with; next step: "
                f"use one copy"
            )


def _beside(metric: str, folder: str | None) -> Path | None:
    """The file beside the stream's that a metric names, if it is there; packages are left to the import path."""
    file = Path(folder or "") / f"{metric.partition(':')[0]}.py"
    return file if folder and file.is_file() else None


class _Fresh(SourceFileLoader):
    """Compiles a file as it is: the cache beside it does not see a change of equal length within a second."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file's text."""
        return self.source_to_code(self.get_data(self.path), self.path)


@functools.cache
def _loaded(file: Path, sha256: str) -> ModuleType:
    """The module in a file, anew for each text of it."""
    name = f"raycl_metric_{sha256[:16]}_{file.stem}"
    made = module_from_spec(ModuleSpec(name, loader := _Fresh(name, str(file)), origin=str(file)))
    sys.modules[name] = made  # dataclasses look there
    loader.exec_module(made)
    return made


def _imported(metric: str) -> Callable[[str, Sequence[str]], Any]:
    module = metric.partition(":")[0]
    return _named(metric, lambda: importlib.import_module(module))


def _function(metric: str, code: Code) -> Callable[[str, Sequence[str]], Any]:
    """The function behind a metric, of the source that `code` says. Raises DataError."""
    file = _beside(metric, code.folder)
    return _imported(metric) if file is None else _named(metric, lambda: _loaded(file, code.sha256))


def _named(metric: str, open_module: Callable[[], ModuleType]) -> Callable[[str, Sequence[str]], Any]:
    """The function that a metric names in a module. Raises DataError."""
    module, _, name = metric.partition(":")
    step = "put the file beside the stream's file, or on PYTHONPATH"
    try:
        opened = open_module()
    except Exception as error:  # whatever the user's module raises
        raise DataError(
            f"metric {shown(metric)}: module {module} cannot be imported ({type(error).__name__}: {first_line(error)}); "
            f"next step: {step}"
        ) from None
    found = getattr(opened, name, None)
    if not callable(found):
        where = getattr(opened, "__file__", None)
        raise DataError(f"metric {shown(metric)}: module {module} ({where}) has no function {name}; next step: {step}")
    return found


def own_measure(metric: str, code: Code) -> Callable[[str, Sequence[str]], float]:
    """The function behind a metric, its results checked. Raises DataError as `find_code`, and for a wrong result."""
    function = _function(metric, code)

    again = "next step: correct the function, and run the same command again"

    def measure(prediction: str, answers: Sequence[str]) -> float:
        try:
            value = float(function(prediction, list(answers)))
        except Exception as error:  # whatever the user's function raises
            raise DataError(
                f"metric {shown(metric)}: fails on the prediction {shown(prediction[:60])} with the references "
                f"{repr(list(answers))[:200]} ({type(error).__name__}: {first_line(error)}); {again}"
            ) from error
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise DataError(
                f"metric {shown(metric)}: gives {value} for {shown(prediction[:60])}; allowed: 0 to 1; {again}"
            )
        return value

    return measure
