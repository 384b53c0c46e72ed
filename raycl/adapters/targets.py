"""Which modules of a backbone get adapters: names, regular expressions or all linear ones, as the paths of modules.

An entry of `method.targets` is the last part of a path or more of it (`q_proj`, `self_attn.q_proj`, a whole path), `re:` and
a regular expression that whole paths of linear modules must match, or `all-linear`: every linear module but the output head.
A regular expression and `all-linear` choose among the modules that a forward pass calls.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from raycl.adapters.backbone import Backbone

ALL_LINEAR = "all-linear"
PATTERN = "re:"


def read_targets(value: object) -> object:
    """The value of `method.targets` as a list: a text alone is its one entry. Raises ValueError for a bad expression."""
    entries = [value] if isinstance(value, str) else value
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, str) and entry.startswith(PATTERN):
            try:
                re.compile(entry.removeprefix(PATTERN))
            except re.error as error:
                raise ValueError(f"{entry!r} is no regular expression ({error})") from None
    return entries


def chosen(backbone: Backbone, wanted: Collection[str] | None) -> tuple[str, ...]:
    """The paths that the entries `wanted` choose, in the model's order; none = the backbone's defaults.

    Raises ValueError for an entry that chooses nothing.
    """
    found: set[str] = set()
    every = every_path(backbone)
    for entry in wanted or backbone.targets:
        paths = matches(backbone, entry, every)
        if not paths:
            raise ValueError(f"method.targets: {entry!r} names no module of the model")
        found |= set(paths)
    return tuple(path for path in every if path in found)


def every_path(backbone: Backbone) -> list[str]:
    """The paths of all modules of a backbone's model, in its order."""
    return [path for path, _ in backbone.model.named_modules()]


def matches(backbone: Backbone, entry: str, every: Sequence[str]) -> list[str]:
    """The paths that one entry chooses of `every` path of the model; an entry that is a name may also name what cannot carry
    a branch."""
    if entry == ALL_LINEAR:
        head = backbone.model.get_output_embeddings()
        return [path for path in backbone.regions if backbone.model.get_submodule(path) is not head]
    if entry.startswith(PATTERN):
        pattern = re.compile(entry.removeprefix(PATTERN))
        return [path for path in backbone.regions if pattern.fullmatch(path)]
    return [path for path in every if path == entry or path.endswith(f".{entry}")]


def summed_up(paths: Iterable[str]) -> dict[str, int]:
    """Paths that differ in numbers only as one, and how many there are: `layers.*.q_proj` -> 12."""
    counts: dict[str, int] = {}
    for path in paths:
        kind = ".".join("*" if part.isdigit() else part for part in path.split("."))
        counts[kind] = counts.get(kind, 0) + 1
    return counts
