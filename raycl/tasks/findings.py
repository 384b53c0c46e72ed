"""What a look at a stream's tasks finds: plain records, which are drawn elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycl.tasks.duplicates import Twins

SHARES = (0.5, 0.9, 0.99, 1.0)
"""Percentiles of lengths that are given, as shares."""


@dataclass(frozen=True)
class Sample:
    """One example as the model reads it."""

    id: str
    prompt: str
    """The text of the prompt's tokens, cut where it is too long."""
    answer: str
    """The text of the tokens that train, the end token written out."""
    tokens: tuple[int, int]
    """Of the prompt and of the answer."""
    cut: bool
    """Whether the prompt was too long."""


@dataclass(frozen=True)
class TaskCheck:
    """What was found of one task."""

    name: str
    metric: tuple[str, ...]
    rows: dict[str, int]
    """By split."""
    labels: dict[str, tuple[int, int]] | None
    """Label -> rows in train and in test; none for free text."""
    prompt_tokens: tuple[int, ...]
    """At the percentiles of `SHARES`, uncut, over both splits."""
    answer_tokens: tuple[int, ...]
    """The same of the answers, with their end token."""
    cut_prompts: float
    """Share that is longer than the limit."""
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What a run would be refused for."""


@dataclass(frozen=True)
class StreamCheck:
    """What was found of a stream."""

    tasks: tuple[TaskCheck, ...]
    twins: tuple[Twins, ...]
    limits: dict[str, int]
    """The run's limits, and the model's positions if it has a limit."""
    left_out: tuple[str, ...] = field(default=())
    """Published tasks, whose place was not given."""
    too_long: tuple[str, ...] = ()
    """Inputs that the model has no positions for."""

    @property
    def problems(self) -> list[str]:
        """All that a run would be refused for."""
        return [*(line for task in self.tasks for line in task.problems), *self.too_long]
