"""Copies of tasks' data in a folder: what hub tasks need to run offline, with counts and hashes of what was fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import yaml

from raycl.errors import DataError
from raycl.files import Json, write_json, write_text, write_whole
from raycl.reading import YAML, parse_yaml, read_text
from raycl.tasks.hub import load_hub, rows_of_hub
from raycl.tasks.rows import gather
from raycl.tasks.stream import Files, Hub, Published, Saved, TaskEntry

MANIFEST = "manifest.json"
Done = Callable[[str, Json], None]
"""Told of each task that is there: its name and its record."""


def fetch(entries: Sequence[TaskEntry], folder: Path, seed: int, done: Done) -> Json:
    """Copy the hub data of tasks into `folder`, which may hold earlier copies, and return the manifest.

    A published task is written in the JSONL benchmark layout, drawn with `seed` as a run would: `--data FOLDER` reads it.
    Of a task of one's own all rows are kept, as `<task>/<split>.jsonl`. Tasks whose data are not on the hub are passed over.
    Raises DataError with the problems of all tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    manifest = _earlier(path)

    def one(entry: TaskEntry) -> None:
        manifest[entry.name] = (
            _published(entry, folder, seed) if isinstance(entry.data, Published) else _own(entry, folder)
        )
        write_json(path, manifest)
        done(entry.name, manifest[entry.name])

    gather([lambda entry=entry: one(entry) for entry in entries if on_hub(entry)])
    return manifest


def _earlier(path: Path) -> Json:
    """The manifest of earlier copies; empty without one. Raises DataError for one that cannot be read."""
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_bytes())
        found = f"a {type(manifest).__name__}"
    except ValueError as error:
        manifest, found = None, str(error)
    if isinstance(manifest, dict):
        return manifest
    raise DataError(
        f"{path}: got {found}; allowed: the JSON mapping that an earlier `raycl data fetch` wrote; "
        "next step: restore the file, or fetch into another folder"
    )


def on_hub(entry: TaskEntry) -> bool:
    """Whether a task's data can be fetched from the hub."""
    return isinstance(entry.data, Hub) or (isinstance(entry.data, Published) and entry.data.hub is not None)


def _published(entry: TaskEntry, folder: Path, seed: int) -> Json:
    raw = load_hub(entry, seed)
    write_json(_inside(folder, entry.name) / "labels.json", list(raw.labels or ()))
    splits = {"train": raw.train, "test": raw.test}
    rows = {
        name: ({"sentence": row.text, "label": row.answers[0]} for row in split.rows) for name, split in splits.items()
    }
    return {**raw.details["hub"], "seed": seed, "files": _write(entry.name, rows, folder)}


def _own(entry: TaskEntry, folder: Path) -> Json:
    data = entry.data
    assert isinstance(data, Hub)
    rows = {split: (row for _, row in rows_of_hub(data, split)) for split in data.splits()}
    facts = {"id": data.hub, "config": data.config, "revision": data.revision}
    return {**facts, "files": _write(entry.name, rows, folder)}


def _write(task: str, splits: Mapping[str, Iterable[Json]], folder: Path) -> Json:
    """The rows of each split as JSON lines; returns counts and hashes by file."""
    files: Json = {}
    for split, rows in splits.items():
        path = _inside(folder, task) / f"{split}.jsonl"
        count = 0

        def lines(rows: Iterable[Json] = rows) -> Iterator[str]:
            nonlocal count
            for row in rows:
                count += 1
                yield json.dumps(row, ensure_ascii=False, default=str) + "\n"

        def write(partial: Path) -> None:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(lines())

        write_whole(path, write)
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        files[f"{task}/{split}.jsonl"] = {"rows": count, "sha256": digest, "bytes": os.path.getsize(path)}
    return files


def _inside(folder: Path, task: str) -> Path:
    made = folder / task
    made.mkdir(exist_ok=True)
    return made


def local_stream(path: Path, entries: Sequence[TaskEntry], fetched: Sequence[str], folder: Path) -> Path:
    """Write a copy of the stream at `path` into `folder` whose hub tasks of these names read the copies there.

    `entries` are the stream's own; files that they name are found from the copy too. Raises DataError.
    """
    value: Any = parse_yaml(read_text(path, YAML))
    own = {entry.name: entry.data for entry in entries}
    for task in value["tasks"]:
        name = task.get("name")
        data = own.get(name)
        if isinstance(data, Hub) and name in fetched:
            task["data"] = {split: f"{name}/{split}.jsonl" for split in data.splits()}
        elif isinstance(data, Files | Saved):
            task["data"] = data.model_dump(exclude_none=True)  # of paths that hold wherever the stream's file is
    target = folder / path.name
    if target.resolve() == path.resolve():
        raise DataError(f"--to {folder}: holds the stream's own file; next step: give another folder")
    return write_text(target, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
