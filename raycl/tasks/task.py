"""What a task is: examples with rendered prompts, labels, a metric, and a record of where the data came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Metric = Literal["exact_match", "raw_match", "rouge_l", "rouge_l_unicode"]
"""How answers are scored: see `raycl.tasks.scoring`."""


@dataclass(frozen=True)
class Example:
    """One rendered example: what the model reads and what it may answer.

    The prompt comes in three parts, so that a prompt that is too long loses the end of its `body` and never the
    instruction (`head`) or the question and the final cue (`tail`).
    """

    id: str
    head: str
    body: str
    tail: str
    answers: tuple[str, ...]
    """Accepted answers; the first is the training target."""

    @property
    def prompt(self) -> str:
        """The whole prompt, uncut."""
        return self.head + self.body + self.tail


@dataclass(frozen=True)
class Task:
    """One data set with its splits, ready for the stage loop."""

    name: str
    category: str
    metric: Metric
    labels: tuple[str, ...] | None
    """The closed label set, in the order of the prompt's options; none for free-text answers."""
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    """Source, counts, sampling seed, SHA-256 of the files read, licence."""

    @property
    def train_fingerprint(self) -> str:
        """SHA-256 of the training examples in order: enters the stage key."""
        return fingerprint(self.train)

    @property
    def test_fingerprint(self) -> str:
        """SHA-256 of the test examples in order: enters the key of a row of scores."""
        return fingerprint(self.test)


def union(tasks: Sequence[Task]) -> Task:
    """All tasks as one: the training examples of each, in order. It has no test split; scores stay apart by task."""
    train = tuple(example for task in tasks for example in task.train)
    name = "+".join(task.name for task in tasks)
    return Task(name, "union", tasks[0].metric, None, train, (), {"tasks": [task.name for task in tasks]})


def fingerprint(examples: tuple[Example, ...]) -> str:
    """SHA-256 over the canonical JSON of the examples' ids, prompts and answers, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, example.prompt, example.answers], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
