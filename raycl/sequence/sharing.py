"""What the trials of a sweep share: stages with the same key are one stage, whoever makes it. Plain keys, no Ray."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Sharing:
    """How many stage runs a sweep asks for, and how many it takes."""

    needed: int
    """Stage runs of all trials, each trial on its own."""
    distinct: int
    """Different stages among them."""
    stored: int
    """Of the different ones: in the store before the sweep."""

    @property
    def trained(self) -> int:
        """Stage runs that are left to do, or were done."""
        return self.distinct - self.stored

    @property
    def shared(self) -> int:
        """Stage runs that a trial has from another trial."""
        return self.needed - self.distinct

    @property
    def saved(self) -> int:
        """Stage runs that nobody has to do."""
        return self.needed - self.trained

    def to_json(self) -> dict[str, int]:
        """All five numbers."""
        return asdict(self) | {"trained": self.trained, "shared": self.shared, "saved": self.saved}


def sharing(trials: Sequence[Sequence[str]], stored: Collection[str]) -> Sharing:
    """Count over the stage keys of each trial, of which some were `stored` before."""
    distinct = {key for keys in trials for key in keys}
    return Sharing(sum(map(len, trials)), len(distinct), len(distinct & set(stored)))


def spread(trials: Sequence[Sequence[str]]) -> list[int]:
    """An order of trials in which neighbours part as early as they can.

    Trials that run at the same time then seldom need the same missing stage, for which all but one would wait. Of trials
    that share a stage the given order stays.
    """
    return _spread(trials, list(range(len(trials))), 0)


def _spread(trials: Sequence[Sequence[str]], places: list[int], depth: int) -> list[int]:
    """Take in turns from the groups that share the stage at `depth`, each spread in itself."""
    groups: dict[str | None, list[int]] = {}
    for place in places:
        keys = trials[place]
        groups.setdefault(keys[depth] if depth < len(keys) else None, []).append(place)
    queues = [
        group if len(group) == 1 or key is None else _spread(trials, group, depth + 1) for key, group in groups.items()
    ]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
