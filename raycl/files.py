"""raycl's places and plain files: its home folder, the checkout, files written whole, JSON without NaN.

Knows no other module of raycl. The store has its own, stricter files (`raycl/state/files.py`).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

Json = dict[str, Any]
"""A JSON object: settings, a recipe, a record."""


def home() -> Path:
    """Where raycl keeps its files unless told otherwise: RAYCL_HOME, or `~/.raycl`; absolute, it may not exist yet."""
    return Path(os.environ.get("RAYCL_HOME") or "~/.raycl").expanduser().resolve()


def checkout() -> Path:
    """The folder that holds the package `raycl`: the root of a checkout, or of an installation."""
    return Path(__file__).resolve().parents[1]


def is_folder(path: Path) -> bool:
    """Whether there is a folder; no path that is too long to be one is. Raises PermissionError where nobody may look."""
    try:
        return path.is_dir()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False


def reach(folders: Iterable[str]) -> None:
    """Let modules in these folders be imported, after all that can be imported already."""
    for folder in folders:
        if folder not in sys.path and not (folder == os.getcwd() and "" in sys.path):
            sys.path.append(folder)


def dotted(values: Mapping[str, Any], prefix: str = "") -> Json:
    """Nested mappings as one: {"train": {"lr": 1}} is {"train.lr": 1}."""
    found: Json = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a neighbour with the same suffix, then move it to `path`: a reader meets the old file or the new."""
    partial = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole, in UTF-8."""
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, indent: int = 1) -> Path:
    """Write a JSON file whole, numbers that are not finite as null."""
    return write_text(path, json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinity as none, tuples as lists."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
