"""Adapters that were trained elsewhere, in a store under the hash of what they are: PEFT's two files in one form."""

from __future__ import annotations

from collections.abc import Mapping

from raycl.errors import StoreError
from raycl.state.files import Files
from raycl.state.keys import canonical_json, content_key, key_folder
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL, ContentName
from raycl.state.part_files import decode_part, encode_part
from raycl.state.records import FileRecord
from raycl.state.sealed import parse_json
from raycl.state.stage_state import Branch, StagePart

NAME = "imported"
BASE = "base.json"
"""Beside PEFT's files: whose weights the branch is added to."""


def write_import(files: Files, branch: Branch, base: str) -> str:
    """Store a branch with the fingerprint of the base model that it is for, and return its key; equal ones have equal keys.

    Raises StoreError for NaN and infinities.
    """
    contents = encode_part(StagePart(NAME, branch), {})
    note = canonical_json({"base": base})
    key = _key(contents, note)
    for name, data in sorted(contents.items()):
        files.write(_place(key, name), data)
    files.write(_place(key, BASE), note)
    return key


def read_import(files: Files, key: str) -> tuple[Branch, str]:
    """The branch with this key and the fingerprint of its base model, checked by it.

    Raises StoreError naming the file if it is missing or another one.
    """
    names: tuple[ContentName, ...] = (ADAPTER_CONFIG, ADAPTER_MODEL)
    where = files.uri(key_folder(NAME, key))
    if not all(files.exists(_place(key, name)) for name in (*names, BASE)):
        raise StoreError(f"{where}: is not there; next step: take the adapter in again with `raycl import-adapter`")
    contents: dict[ContentName, bytes] = {name: files.read(_place(key, name)) for name in names}
    note = files.read(_place(key, BASE))
    if _key(contents, note) != key:
        raise StoreError(f"{where}: is damaged; next step: delete it, and take the adapter in again")
    base = parse_json(note, f"{where}/{BASE}")["base"]
    return decode_part(NAME, {}, contents, where).pair, str(base)


def _key(contents: Mapping[ContentName, bytes], note: bytes) -> str:
    hashes: dict[str, str] = {name: FileRecord.of(data).sha256 for name, data in contents.items()}
    return content_key({NAME: hashes | {BASE: FileRecord.of(note).sha256}})


def _place(key: str, name: str) -> str:
    return f"{key_folder(NAME, key)}/{name}"
