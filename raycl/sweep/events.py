"""What happens to the trials of a sweep, as values. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from raycl.sweep.spaces import Point


@dataclass(frozen=True)
class TrialStart:
    """A trial has got a process, for the first time or again."""

    trial: str
    """Tune's id."""
    point: Point


@dataclass(frozen=True)
class TrialStage:
    """A trial has done a stage, or failed at it."""

    trial: str
    point: Point
    stage: int
    """Stages done."""
    trained: bool
    """Whether this trial trained it."""
    failed: str
    """Why it failed; empty = it did not."""
    note: str = ""
    """What else is to be said."""


@dataclass(frozen=True)
class TrialEnd:
    """A trial has reached its end, was ended by the scheduler, or lost its process too often."""

    trial: str
    point: Point
    failed: str


TrialEvent = TrialStart | TrialStage | TrialEnd
