"""What the driver hears of a worker group's failures. No cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raycl.events import Retry
from raycl.sequence.group import GROUP_RESTARTS, FailureNotes


def test_each_failure_after_which_the_group_is_started_again_is_told() -> None:
    """With the worker's own error; the last one ends the run and is told by the run itself."""
    told: list[Any] = []
    notes = FailureNotes(SimpleNamespace(put=told.append))
    for _ in range(GROUP_RESTARTS + 1):
        notes.after_exception(None, {1: SimpleNamespace(_base_exc=ValueError("first\nsecond"))})
    assert told == [Retry("ValueError: first", number, GROUP_RESTARTS) for number in (1, 2)]
    FailureNotes(SimpleNamespace(put=told.append)).after_exception(None, {})
    assert told[-1] == Retry("RuntimeError: no reason is known", 1, GROUP_RESTARTS)
