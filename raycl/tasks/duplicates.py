"""Rows that stand twice, exactly or nearly: within a split, on both sides of one, and in two tasks."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from raycl.tasks.scoring import normalise

SHINGLE = 3
"""Words of the runs that two texts are compared by."""
NEAR = 0.8
"""Share of such runs in common (Jaccard) from which two texts are near duplicates."""
BANDS, WIDTH = 16, 4
"""Texts are compared where one of so many bands of so many minimal hashes is equal: 99.98 % of those with 0.8 in common."""
CROWD = 40
"""Texts of one band that are compared with each other at most; more are alike in ways that the exact count shows."""


@dataclass(frozen=True)
class Place:
    """Where a text stands."""

    task: str
    split: str


@dataclass(frozen=True)
class Twins:
    """How many rows of `one` have an equal, or nearly equal, row in `other` (within one place: a second time)."""

    one: Place
    other: Place
    exact: int
    near: int


def find_twins(texts: Iterable[tuple[Place, str]]) -> list[Twins]:
    """Pairs of places that share rows, after normalising as for exact match; most first."""
    places, words = [], []
    for place, text in texts:
        places.append(place)
        words.append(normalise(text))
    exact, near = _exact(places, words), _near(places, words)
    pairs = sorted({*exact, *near}, key=lambda pair: (-exact[pair], -near[pair], str(pair)))
    return [Twins(*pair, exact[pair], near[pair]) for pair in pairs]


def _exact(places: Sequence[Place], words: Sequence[str]) -> Counter[tuple[Place, Place]]:
    """Rows that stand again, by pair of places: each row of the later place counts once."""
    seen: dict[str, set[Place]] = defaultdict(set)
    found: Counter[tuple[Place, Place]] = Counter()
    for place, text in zip(places, words, strict=True):
        for before in seen[text]:
            found[before, place] += 1
        seen[text].add(place)
    return found


def _near(places: Sequence[Place], words: Sequence[str]) -> Counter[tuple[Place, Place]]:
    """Pairs of rows that are alike, not equal, by pair of places: each row of the later place counts once."""
    found: Counter[tuple[Place, Place]] = Counter()
    counted: set[tuple[Place, int]] = set()
    shingles = [_shingles(text) for text in words]
    for first, second in sorted(set(_candidates(shingles))):
        alike = words[first] != words[second] and _jaccard(shingles[first], shingles[second]) >= NEAR
        if alike and (places[first], second) not in counted:
            counted.add((places[first], second))
            found[places[first], places[second]] += 1
    return found


def _shingles(text: str) -> frozenset[int]:
    """Hashes of the runs of words; of a short text, of all of it."""
    words = text.split()
    runs = (" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1)))
    return frozenset(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs)


def _candidates(shingles: Sequence[frozenset[int]]) -> Iterator[tuple[int, int]]:
    """Pairs of texts that agree in a band of minimal hashes."""
    import numpy as np

    draw = np.random.default_rng(0)
    factors = draw.integers(1, 2**63, BANDS * WIDTH, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = draw.integers(0, 2**63, BANDS * WIDTH, dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, runs in enumerate(shingles):
        hashes = np.fromiter(runs, np.uint64, len(runs))[:, None]
        least = (hashes * factors + shifts).min(axis=0)
        for band in range(BANDS):
            buckets[band, least[band * WIDTH : (band + 1) * WIDTH].tobytes()].append(index)
    for members in buckets.values():
        yield from combinations(members[:CROWD], 2)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)
