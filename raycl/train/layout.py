"""Which rows share an optimizer step, and how a step's rows are shared out over workers and micro-batches.

An epoch has rows / batch size steps, rounded up, however its rows are laid out, and a step as many micro-batches on every
worker: learning rates, checkpoints and accumulation count on both. `shuffled` and `like_length` give each step the same
number of rows, `equal_tokens` about the same number of padded tokens. The rows of a step depend neither on the number of
workers nor on the size of a micro-batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from raycl.sections import Batches
from raycl.train.batches import Encoded, cuts
from raycl.train.engine import BatchShape

Item = TypeVar("Item")

WINDOW = 50
"""Steps whose rows are sorted together where they are of like length: enough to sort by, few enough to stay mixed."""


@dataclass(frozen=True)
class MicroBatch:
    """One worker's share of an optimizer step."""

    rows: list[Encoded]
    tokens: float
    """Answer tokens of the whole global batch per micro-batch: dividing the summed loss by it makes the average over all
    micro-batches of all workers the token mean of the global batch, whatever the number of workers."""
    real: float
    """Rows of the whole global batch per micro-batch, fillers left out."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a stage are laid out as steps."""

    rows: Sequence[Encoded]
    shape: BatchShape
    how: Batches = "shuffled"

    def epoch(self, generator: torch.Generator, rank: int) -> Iterator[list[MicroBatch]]:
        """One epoch: for each optimizer step the micro-batches of a worker; steps are the same on all with one draw."""
        share = self.shape.accumulation
        parts = share * self.shape.world
        for step in self.steps(generator):
            rows = [self.rows[i] for i in step]
            tokens, real = sum(row.counts for row in rows) / parts, len(rows) / parts
            mine = self.parts(rows)[rank * share : (rank + 1) * share]
            yield [MicroBatch(part, tokens, real) for part in mine]

    def steps(self, generator: torch.Generator) -> list[list[int]]:
        """The places of the rows of each step, in an order drawn from `generator`."""
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        if self.how == "shuffled":
            return _by_count(order, self.shape.batch)
        # What a last, smaller batch of a fixed number of rows holds is drawn, not sorted.
        whole = len(order) if self.how == "equal_tokens" else len(order) - len(order) % self.shape.batch
        windows = _by_count(order[:whole], WINDOW * self.shape.batch)
        steps = [step for window in windows for step in self._sorted(window)]
        places = torch.randperm(len(steps), generator=generator).tolist()
        return [*(steps[place] for place in places), *_by_count(order[whole:], self.shape.batch)]

    def _sorted(self, window: Sequence[int]) -> list[list[int]]:
        """A window of the draw, by length, as steps."""
        batch = self.shape.batch
        if self.how == "like_length":
            return _by_count(sorted(window, key=lambda i: self.rows[i].tokens), batch)
        order = sorted(window, key=lambda i: -self.rows[i].tokens)
        sizes = [self.rows[i].tokens for i in order]
        return [order[part] for part in even(sizes, -(-len(order) // batch))]

    def parts(self, rows: Sequence[Encoded]) -> list[list[Encoded]]:
        """A step's rows as the micro-batches of all workers.

        What is missing is filled up with rows whose answers are empty and so weigh nothing.
        """
        if self.how != "equal_tokens":
            filled = [*rows, *[Encoded(rows[0].prompt, ())] * (self.shape.batch - len(rows))]
            return _by_count(filled, self.shape.micro)
        count = self.shape.accumulation * self.shape.world
        parts = [list(rows[part]) for part in even([row.tokens for row in rows], count)]
        return parts + [[Encoded(rows[-1].prompt, ())] for _ in range(count - len(parts))]


def even(sizes: Sequence[int], count: int) -> list[slice]:
    """Where rows of these sizes, the largest first, are cut into `count` parts of equal padded tokens; fewer rows: one each.

    As equal as whole rows allow: no other cut has a smaller largest part, rows times the size of its first.
    """
    budgets = range(max(sizes[0], 1), max(sizes[0], 1) * len(sizes) + 1)
    best = bisect_left(budgets, True, key=lambda budget: len(list(cuts(sizes, 1, budget))) <= count)
    parts = [range(len(sizes))[part] for part in cuts(sizes, 1, budgets[best])]
    while len(parts) < min(count, len(sizes)):
        place = max(range(len(parts)), key=lambda i: (len(parts[i]) > 1) * len(parts[i]) * sizes[parts[i][0]])
        middle = (len(parts[place]) + 1) // 2
        parts[place : place + 1] = [parts[place][:middle], parts[place][middle:]]
    return [slice(part.start, part.stop) for part in parts]


def _by_count(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Items in lists of so many, the last one of what is left."""
    return [list(items[at : at + count]) for at in range(0, len(items), count)]
