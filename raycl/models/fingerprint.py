"""What names a model in stage keys: a hash over its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from raycl.files import Json, home, write_json
from raycl.models.places import place, read_files
from raycl.sections import ModelSpec

REMEMBERED_BYTES = 1 << 20
"""Hashes of larger files are remembered."""


def fingerprint(spec: ModelSpec) -> str:
    """SHA-256 over all files that loading may read: the packaged file, a local folder's, or those of the hub's snapshot.

    Hashes of large files are remembered by path, size and modification time, so a rerun does not read them again.
    """
    path = place(spec)
    single = path.is_file()
    digest = hashlib.sha256()
    for file in [path] if single else read_files(path, spec.name):
        named = file.name if single else file.relative_to(path).as_posix()
        digest.update(f"{named} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file, remembered by (path, size, modification time)."""
    facts = file.stat()
    memory = home() / "fingerprints.json"
    entry = f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    known = _remembered(memory)
    if entry not in known:
        with file.open("rb") as stream:
            known[entry] = hashlib.file_digest(stream, "sha256").hexdigest()
        if facts.st_size > REMEMBERED_BYTES:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, known)
    return known[entry]


def _remembered(memory: Path) -> Json:
    """What the file of hashes holds; nothing where it is damaged, since it can be made again."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
