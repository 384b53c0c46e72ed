"""The history of a state, read like a version control log: its stages, and what differs between two states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from raycl.events import work_seconds
from raycl.files import Json, dotted
from raycl.state.manifest import Manifest

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


def log(stages: Sequence[Manifest]) -> list[Entry]:
    """The stages of a state, first to last."""
    return [
        Entry(place, one.task, one.key, one.created, work_seconds(one.end.seconds), _commit(one))
        for place, one in enumerate(stages, start=1)
    ]


def diff(one: Sequence[Manifest], other: Sequence[Manifest]) -> list[Difference]:
    """What differs between two states, stage by stage: recipes (settings, data, base model) and environments.

    A stage with the same key has the same recipe. A stage that only one of them has is one difference of its own.
    """
    found: list[Difference] = []
    for stage, pair in enumerate(zip_longest(one, other), start=1):
        if None in pair:
            tasks = ("there is none" if side is None else side.task for side in pair)
            found.append(Difference(stage, "stage", *tasks))
            continue
        first, second = map(_facts, pair)
        for field in sorted({*first, *second}):
            values = first.get(field, "-"), second.get(field, "-")
            if values[0] != values[1]:
                found.append(Difference(stage, field, *map(str, values)))
    return found


def shared(one: Sequence[Manifest], other: Sequence[Manifest]) -> int:
    """How many stages two states begin with alike."""
    same = [first.key == second.key for first, second in zip(one, other, strict=False)]
    return [*same, False].index(False)


def _facts(manifest: Manifest) -> Json:
    """Recipe and environment of a stage in dots."""
    recipe = {name: value for name, value in manifest.recipe.items() if name not in IDENTITY}
    return dotted(recipe) | dotted(manifest.environment, "environment.")


def _commit(manifest: Manifest) -> str:
    git: Json = manifest.environment.get("git") or {}
    return f"{git['commit'][:10]}{'+' if git.get('dirty') else ''}" if git.get("commit") else ""
