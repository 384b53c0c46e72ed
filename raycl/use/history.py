"""The history of a state, read like a version control log: its stages, and what differs between two states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from raycl.errors import SpecError
from raycl.events import work_seconds
from raycl.files import Json, home, write_json
from raycl.state.manifest import Manifest
from raycl.tasks.stream import NAME
from raycl.use.heads import Head, tag_path

IDENTITY = ("parent", "schema")
"""Fields of a recipe that say nothing of their own: the parent differs because something before it does."""


@dataclass(frozen=True)
class Entry:
    """One stage of a history."""

    stage: int
    task: str
    key: str
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """What the stage cost, without start-up."""
    commit: str
    """Of raycl's source, with `+` where files differed from it; empty where it was not known."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in two stages at the same place."""

    stage: int
    field: str
    """In dots, such as `method.rank`; those of the environment begin with `environment.`."""
    one: str
    other: str


def log(head: Head) -> list[Entry]:
    """The stages of a state, first to last."""
    manifests = [head.store.manifest(key) for key in head.stages]
    return [
        Entry(place, one.task, one.key, one.created, work_seconds(one.end.seconds), _commit(one))
        for place, one in enumerate(manifests, start=1)
    ]


def diff(one: Head, other: Head) -> list[Difference]:
    """What differs between two states, stage by stage: recipes (settings, data, base model) and environments.

    A stage with the same key has the same recipe. A stage that only one of them has is one difference of its own.
    """
    found: list[Difference] = []
    for stage, keys in enumerate(zip_longest(one.stages, other.stages), start=1):
        sides = [_facts(head, key) if key else None for head, key in zip((one, other), keys, strict=True)]
        first, second = sides
        if first is None or second is None:
            tasks = ("there is none" if side is None else side["task.name"] for side in sides)
            found.append(Difference(stage, "stage", *tasks))
            continue
        for field in sorted({*first, *second}):
            pair = first.get(field, "-"), second.get(field, "-")
            if pair[0] != pair[1]:
                found.append(Difference(stage, field, *pair))
    return found


def shared(one: Head, other: Head) -> int:
    """How many stages two states begin with alike."""
    same = [first == second for first, second in zip(one.stages, other.stages, strict=False)]
    return same.index(False) if False in same else len(same)


def tag(head: Head, name: str) -> None:
    """Give a state a name, such as `production`; a name that is taken is moved. Raises SpecError for an odd name."""
    if not re.fullmatch(NAME, name) or (home() / "runs" / name).exists():
        raise SpecError(f"tag {name!r}: is the name of a run, or no name; allowed: letters, digits, `_`, `.` and `-`")
    path = tag_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = head.spec.model_dump(mode="json")
    write_json(path, {"spec": spec, "stage_keys": list(head.stages), "store": head.store.uri, "data": head.records})


def _facts(head: Head, key: str) -> dict[str, str]:
    """Recipe and environment of a stage in dots."""
    manifest = head.store.manifest(key)
    recipe = {name: value for name, value in manifest.recipe.items() if name not in IDENTITY}
    return _dotted(recipe) | _dotted(manifest.environment, "environment.")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
    return found


def _commit(manifest: Manifest) -> str:
    git: Json = manifest.environment.get("git") or {}
    return f"{git['commit'][:10]}{'+' if git.get('dirty') else ''}" if git.get("commit") else ""
