"""Sealed JSON: an object that carries its schema version and the SHA-256 of all its other fields.

The seal finds accidents (a torn copy, a flipped bit, an edit by hand); it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from raycl.errors import StoreError, shown
from raycl.state.keys import SCHEMA, canonical_json


class OtherVersion(StoreError):
    """A file that another release of raycl wrote."""


def seal(record: dict[str, Any]) -> bytes:
    """The file content of a record: one field per line in sorted order, then its seal.

    Raises TypeError and ValueError for what JSON cannot hold, as `canonical_json`.
    """
    versioned = {"schema_version": SCHEMA, **record}
    lines = [f"{_text(name)}: {_text(versioned[name])}" for name in sorted(versioned)]
    lines.append(f'"seal": "{hashlib.sha256(canonical_json(versioned)).hexdigest()}"')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The record in a sealed file, with its `schema_version`; `where` is the file's name for messages.

    Raises StoreError if it is not JSON, was written by another schema version, or does not match its seal.
    """
    record = parse_json(data, where)
    if not isinstance(record, dict):
        raise StoreError(f"{where} holds a {type(record).__name__}, expected a JSON object. {_REMEDY}")
    version = record.get("schema_version")
    if type(version) is not int or version != SCHEMA:
        raise OtherVersion(
            f"{where} has schema version {shown(version)}; this raycl reads version {SCHEMA}. "
            "Use the raycl release that wrote it, or another store"
        )
    record.pop("seal", None)
    # Compared as bytes, so that not even white space can change unseen.
    if data != seal(record):
        raise StoreError(f"{where} does not match its seal: it was damaged or edited. {_REMEDY}")
    return record


def parse_json(data: bytes, where: str) -> Any:
    """Strict JSON: repeated keys, NaN and infinity are refused. Raises StoreError naming `where`."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        # Numbers beyond a float's range parse to infinity without reaching parse_constant.
        canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is not valid JSON ({error}). {_REMEDY}") from None
    return value


_REMEDY = "Delete the folder it is in and run again, or restore the file from a copy"


def _text(value: Any) -> str:
    return canonical_json(value).decode()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is repeated in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
