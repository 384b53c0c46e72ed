"""An amount of work, and how long it takes at a stated or measured speed. A multiply-add is two operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["train", "passes", "score"]
PHASES: tuple[Phase, ...] = ("train", "passes", "score")
"""Training, the data passes before and after it, and the answers to the test sets."""
LINK_BYTES = 12.5e9
"""Bytes a second between processes that exchange gradients: 100 Gbit/s, what links machines; inside of one it is more."""


@dataclass(frozen=True)
class Work:
    """An amount of work. Amounts can be added, and multiplied by a number."""

    products: float = 0.0
    """Multiply-adds of passes over many tokens."""
    layers: float = 0.0
    """Layers passed through, forward or back: each costs time of its own, whatever its size."""
    written: float = 0.0
    """Multiply-adds of passes that write one token a row."""
    moved: float = 0.0
    """Bytes that these must read: they pass over all weights for few tokens."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.layers + other.layers,
            self.written + other.written,
            self.moved + other.moved,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.layers * times, self.written * times, self.moved * times)

    @property
    def multiply_adds(self) -> float:
        """All of them."""
        return self.products + self.written


def total(works: Iterable[Work]) -> Work:
    """The sum."""
    return sum(works, Work())


@dataclass(frozen=True)
class Rates:
    """How fast one process works."""

    products: float
    """Multiply-adds a second of passes over many tokens, forward and back, as they are reached in use."""
    forward: float
    """The same of passes forward alone, which keep nothing for the way back."""
    moved: float
    """Bytes a second that are read where a pass is over few tokens."""
    layer: float
    """Seconds that each layer passed through costs beside."""
    source: str
    """Where these come from, in words."""

    def seconds(self, work: Work, back: bool = False) -> float:
        """What an amount of work takes, forward or also `back`; one token a row is bound by arithmetic or by reading the
        weights."""
        written = max(work.written / self.forward, work.moved / self.moved)
        return work.products / (self.products if back else self.forward) + written + work.layers * self.layer


def exchange(trained: int, workers: int) -> float:
    """Seconds of a step in which `workers` sum up the fp32 gradients of `trained` weights, each over a ring."""
    return 2 * 4 * trained * (workers - 1) / workers / LINK_BYTES


def shared_out(batch: int, gpus: int) -> int:
    """How many of `gpus` the rows of a global batch split over evenly."""
    return next(count for count in range(min(batch, gpus), 0, -1) if batch % count == 0)
