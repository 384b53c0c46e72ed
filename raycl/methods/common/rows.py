"""What a stage trains on: rows, each an example with whose task it is of and how much it weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycl.adapters.token_rows import TokenRows
from raycl.tasks.stored import Picked
from raycl.tasks.task import Example


@dataclass(frozen=True)
class Row:
    """One training row: an example, whose task it belongs to, and how much it weighs."""

    example: Example
    stage: int = 0
    """1-based stage of the task the row stands for; 0 = the current one."""
    weight: float = 1.0
    """Weight of the row's answer tokens in the cross-entropy."""
    mean: bool = False
    """Whether the row counts as one token, whose cross-entropy is the mean over its answer: so long answers do not outweigh
    short ones."""
    tokens: int | None = None
    """Longest answer, with its end token; none = `data.max_target_tokens`."""


Read = Callable[[Sequence[Example]], TokenRows]
"""Gives examples of the stage's task as the model reads them, in order: the same on every worker."""


def own_rows(examples: Sequence[Example]) -> Sequence[Row]:
    """Each example as a row of the current task, made when it is asked for."""
    return Picked(examples, range(len(examples)), _own_row)


def _own_row(index: int, example: Example) -> Row:
    return Row(example)
