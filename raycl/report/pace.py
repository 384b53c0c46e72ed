"""How far a sequence is, and how long the rest takes if it goes as the stages so far went."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORTEST_SHARE = 0.05
"""Share of all stages to run that must be done before a guess is made."""


class Pace:
    """Counts the stages that are run, from the first one's start on; a start-up before it is no part of the guess."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        """`total` stages are to run; `now` is a clock in seconds."""
        self.total, self._now = total, now
        self.done = 0
        """Stages that are trained and scored."""
        self._running: dict[int, float] = {}
        """Stage that is trained -> its share that is done, 0 to 1; groups of workers train several at the same time."""
        self._started: float | None = None

    @property
    def left(self) -> int:
        """Stages to go, the running ones among them."""
        return max(self.total - self.done, 0)

    def begin(self, stage: int) -> None:
        """A stage starts, for the first time or again."""
        self._started = self._now() if self._started is None else self._started
        self._running[stage] = 0.0

    def within(self, stage: int, share: float) -> None:
        """So much of a running stage's training (0 to 1) is done."""
        self._running[stage] = share

    def stage_done(self, stage: int) -> bool:
        """A stage is scored; whether it ran."""
        ran = self._running.pop(stage, None) is not None
        self.done += ran
        return ran

    @property
    def words(self) -> str:
        """`, about 3 min left`; empty while too little is done to tell."""
        done = self.done + sum(self._running.values())
        if self._started is None or self.total <= done or done < SHORTEST_SHARE * self.total:
            return ""
        seconds = (self._now() - self._started) / done * (self.total - done)
        return f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
