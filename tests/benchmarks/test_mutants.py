"""What benchmarks/mutants_reviewed.json says of mutants, it says of some that there are."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.kit.places import ROOT
from tests.kit.scripts import script

mutants = script("mutants")


def names() -> Iterator[str]:
    """Of every mutant of every room."""
    for patterns, _ in mutants.ROOMS.values():
        for path in {path for pattern in patterns.split() for path in (ROOT / "raycl").glob(pattern)}:
            file = str(path.relative_to(ROOT))
            yield from (one.name for one in mutants.mutants_of(file, path.read_text(encoding="utf-8")))


def test_every_name_that_was_reviewed_is_that_of_a_mutant() -> None:
    """A renamed function would let a mutant that once passed unnoticed out of the choice."""
    listed, found = json.loads(mutants.REVIEWED.read_text()), set(names())
    assert set(listed["equivalent"]) <= found
    assert not [start for start in listed["always"] if not any(name.startswith(f"raycl/{start}") for name in found)]
