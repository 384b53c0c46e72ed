"""The history of a state, read like a version control log: its stages, and what differs between two states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from raycl.events import work_seconds
from raycl.files import Json, dotted
from raycl.state.manifest import Manifest
from raycl.state.stage_state import StagePart

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
    imported: bool
    """Whether its branch was trained elsewhere, and taken in."""
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


@dataclass(frozen=True)
class StageFacts:
    """What one stage holds."""

    entry: Entry
    parent: str | None
    """Key of the stage that it goes on from."""
    examples: str
    """SHA-256 of the training examples."""
    branch: Json | None
    """Rank, alpha, and the number of adapted modules; none where it has no branch."""
    tensors: dict[str, int]
    """What else it holds (gates, sums, prompts, weights), by the part of the name before a `/` -> numbers in it."""
    size: int
    """Bytes of its files."""


def facts_of(entry: Entry, manifest: Manifest, part: StagePart) -> StageFacts:
    """What a stored stage holds, from its manifest and its content."""
    pair = part.branch
    tensors: dict[str, int] = {}
    for name, value in part.tensors.items():
        kind = name.partition("/")[0]
        tensors[kind] = tensors.get(kind, 0) + value.numel()
    return StageFacts(
        entry,
        manifest.parent,
        manifest.recipe["task"]["train"],
        None if pair is None else {"rank": pair.rank, "alpha": pair.alpha, "modules": len(pair.a)},
        tensors,
        sum(record.bytes for record in manifest.files.values()),
    )


def log(stages: Sequence[Manifest]) -> list[Entry]:
    """The stages of a state, first to last."""
    return [
        Entry(
            place,
            one.task,
            one.key,
            one.created,
            work_seconds(one.end.seconds),
            "imported" in one.recipe,
            _commit(one),
        )
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
