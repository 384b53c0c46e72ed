"""What a task is: examples with rendered prompts, labels, a metric, and a record of where the data came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raycl.tasks.code import Code
from raycl.tasks.stored import Joined, held

Metric = str
"""How answers are scored: a name in the table of `raycl.tasks.scoring`, or a function `module:name`."""
Turns = tuple[tuple[str, str], ...]
"""Messages of a chat, each its role (`system`, `user`, `assistant`) and its text."""


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
    chat: Turns | None = None
    """Messages before the prompt, where the tokenizer's chat template goes around prompt and answer; none = no template."""
    tokens: int | None = None
    """Longest answer in tokens, its end token included; none = `data.max_target_tokens`."""
    weight: float = 1.0
    """Weight of the answer's tokens in the cross-entropy."""

    @property
    def prompt(self) -> str:
        """The whole prompt, uncut."""
        return self.head + self.body + self.tail

    @property
    def further(self) -> dict[str, Any]:
        """The fields beside prompt and answers that are not at their default, JSON-ready: older records are without them."""
        found: dict[str, Any] = {} if self.chat is None else {"chat": [list(turn) for turn in self.chat]}
        found |= {} if self.tokens is None else {"tokens": self.tokens}
        return found | ({} if self.weight == 1 else {"weight": self.weight})


def turns(chat: Iterable[Iterable[str]] | None) -> Turns | None:
    """The messages of a record. Of each, role and text."""
    return None if chat is None else tuple((role, text) for role, text in chat)


@dataclass(frozen=True)
class Task:
    """One data set with its splits, ready for the stage loop."""

    name: str
    category: str
    metric: Metric
    labels: tuple[str, ...] | None
    """The closed label set, in the order of the prompt's options; none for free-text answers."""
    train: Sequence[Example] = field(repr=False)
    """In memory, or on disk where there are many (`raycl.tasks.stored`)."""
    test: Sequence[Example] = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    """Source, counts, sampling seed, SHA-256 of the files read, licence."""
    metrics: tuple[Metric, ...] = ()
    """Further metrics, which are recorded beside the first."""
    aliases: tuple[str, ...] = ()
    """Further words that count as one of the labels."""
    code: Mapping[str, Code] = field(default_factory=dict, repr=False)
    """The metrics that are functions of the user's, and their source."""
    own: bool = False
    """Whether a stream of the user's describes it. Its fingerprints then hold where a prompt may be cut, which the stream
    says; for a built-in task the package does."""

    @cached_property
    def train_fingerprint(self) -> str:
        """SHA-256 of the training examples in order: enters the stage key."""
        return fingerprint(self.train, self.own)

    @cached_property
    def test_fingerprint(self) -> str:
        """SHA-256 of the test examples in order: enters the key of a row of scores."""
        return fingerprint(self.test, self.own)

    @property
    def closed(self) -> tuple[str, ...] | None:
        """All words that may be an answer, where the task has labels."""
        return (*self.labels, *self.aliases) if self.labels else None

    @property
    def answer_tokens(self) -> int | None:
        """The task's own limit of its answers in tokens; none = `data.max_target_tokens`."""
        return self.test[0].tokens if self.test else None

    @property
    def in_chat(self) -> bool:
        """Whether the tokenizer's chat template goes around the prompts."""
        return bool(self.test) and self.test[0].chat is not None


def union(tasks: Sequence[Task]) -> Task:
    """All tasks as one: the training examples of each, in order. It has no test split; scores stay apart by task."""
    train = held(Joined(*(task.train for task in tasks)))
    name = "+".join(task.name for task in tasks)
    own = any(task.own for task in tasks)
    return Task(name, "union", tasks[0].metric, None, train, (), {"tasks": [task.name for task in tasks]}, own=own)


def fingerprint(examples: Iterable[Example], parts: bool = False) -> str:
    """SHA-256 over the canonical JSON of the examples' ids, prompts and answers, in order, with what is not the default of
    their further fields. With `parts` a prompt counts as its three parts and not as one text."""
    digest = hashlib.sha256()
    for example in examples:
        prompt = [example.head, example.body, example.tail] if parts else example.prompt
        content = [example.id, prompt, example.answers, *([example.further] if example.further else [])]
        digest.update(json.dumps(content, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
