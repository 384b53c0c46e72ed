"""The draw of a number of rows: balanced over classes, repeatable, independent of what else is loaded."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence


def draw(classes: Sequence[Hashable], count: int | None, seed: str) -> list[int]:
    """Indices of `count` items, as equal in number per class as the classes allow; all, in order, if none are left out.

    `classes` holds the class of each item (one value for all of them gives a plain random draw). Classes take turns
    giving an item until `count` is reached, so a rare class gives all it has. The same `seed` gives the same indices,
    and a smaller draw is a subset of a larger one. The drawn order is shuffled.
    """
    if count is None or count >= len(classes):
        return list(range(len(classes)))
    chosen: list[int] = []
    queues = _queues(classes, seed)
    while len(chosen) < count:
        queues = [queue for queue in queues if queue]
        chosen += [queue.pop() for queue in queues[: count - len(chosen)]]
    random.Random(seed).shuffle(chosen)
    return chosen


def draw_per_class(classes: Sequence[Hashable], per_class: int, seed: str) -> list[int]:
    """Shuffled indices of at most `per_class` items of each class."""
    chosen = [index for queue in _queues(classes, seed) for index in queue[:per_class]]
    random.Random(seed).shuffle(chosen)
    return chosen


def _queues(classes: Sequence[Hashable], seed: str) -> list[list[int]]:
    """The shuffled indices of each class; classes in a fixed order."""
    groups: dict[Hashable, list[int]] = {}
    for index, value in enumerate(classes):
        groups.setdefault(value, []).append(index)
    ordered = sorted(groups.items(), key=lambda pair: str(pair[0]))
    for value, indices in ordered:
        random.Random(f"{seed}:{value}").shuffle(indices)
    return [indices for _, indices in ordered]
