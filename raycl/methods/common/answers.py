"""What the model itself answers to examples, for methods that keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycl.tasks.task import Example


@dataclass(frozen=True)
class Answered:
    """The model's own answer to an example."""

    text: str
    score: float
    """What the task's metric gives for it, 0 to 100."""
    ended: bool
    """Whether it came to its end token, and not to the limit."""


Ask = Callable[[Sequence[Example]], list[Answered]]
"""Lets the model, as it is installed and trained by now, answer examples of the stage's task greedily, as it does at test;
the answers come in the examples' order, and are the same on every worker."""
