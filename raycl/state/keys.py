"""Content keys: one JSON value has one byte string, and its SHA-256 names what was made from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from raycl.errors import StoreError, shown

SCHEMA = 1
"""Version of every file format in the store; it belongs in each recipe, so that a new format never meets an old key."""

_KEY = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 encoding of a JSON value: keys sorted, no white space, floats in their shortest exact form.

    Allowed are None, bool, int, finite float, str, list and dict with str keys; nothing is converted silently.
    Raises TypeError for another type and ValueError for NaN, infinity or text that is not Unicode; both name the place.
    """
    try:
        _require_json(value, "value")
    except RecursionError:
        raise ValueError("value is nested too deeply, or contains itself") from None
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_key(recipe: dict[str, Any]) -> str:
    """The SHA-256 (64 hex digits) of a recipe's canonical JSON. Raises TypeError and ValueError as `canonical_json`."""
    return hashlib.sha256(canonical_json(recipe)).hexdigest()


def is_key(text: str) -> bool:
    """Whether `text` is 64 lower-case hex digits."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def require_key(key: str) -> str:
    """`key` itself if it is 64 lower-case hex digits; raises StoreError otherwise, before it can become a path."""
    if not is_key(key):
        raise StoreError(
            f"{shown(key)} is not a content key: expected 64 hex digits (0-9, a-f), as `content_key` makes them"
        )
    return key


def key_folder(room: str, key: str) -> str:
    """Where a room of the store (stages, scores, partial) keeps what belongs to `key`. Raises StoreError for no key."""
    return f"{room}/{require_key(key)[:2]}/{key}"


def _require_json(value: Any, place: str) -> None:
    if value is None or isinstance(value, int):
        return
    if isinstance(value, str):
        _require_unicode(value, place)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: JSON has finite numbers only")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_json(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{place} has the key {name!r}: JSON keys are str, not {type(name).__name__}")
            _require_unicode(name, f"a key of {place}")
            _require_json(item, f"{place}[{name!r}]")
    else:
        raise TypeError(
            f"{place} is a {type(value).__name__}: allowed are None, bool, int, float, str, list and dict "
            "(turn tuples and sets into lists, numbers of numpy and torch into Python's)"
        )


def _require_unicode(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} is {text!r}: half of a surrogate pair is not Unicode text") from None
