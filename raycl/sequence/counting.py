"""The texts of tasks as batches of a model: what is tokenised, and how long the rows are that pass through it together."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from raycl.models.counts import Batch
from raycl.sequence.task_check import spread
from raycl.spec import RunSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder, cuts
from raycl.train.stage import batch_shape

LOOKED_AT = 2_000
"""Rows of a split that are tokenised; of more, so many at even distances."""
CHARACTERS = 4
"""Characters of a token where the model's tokenizer is not at hand: English text under vocabularies of 32,000 words."""


class RoughTokenizer:
    """Stands in for a tokenizer: every `CHARACTERS` characters are one token, without a meaning."""

    eos_token_id = -1

    def __call__(self, text: str, **how: Any) -> SimpleNamespace:
        """As many ids as the text has tokens, about."""
        return SimpleNamespace(input_ids=[0] * math.ceil(len(text) / CHARACTERS))

    def decode(self, ids: Sequence[int], **how: Any) -> str:
        """Nothing: ids have no meaning."""
        return ""


@dataclass(frozen=True)
class Texts:
    """A task as batches. Those of a split stand for `share` times as many."""

    tokens: int
    """Of prompts and answers of the rows that were looked at."""
    run: int
    """The same as the model runs them, padding included: what `tokens/s` counts, without soft prompts."""
    trained: tuple[Batch, ...]
    """In training's random order, micro-batch by micro-batch."""
    passed: tuple[Batch, ...]
    """By length, as data passes take them; one by one where gradients are observed."""
    asked: tuple[Batch, ...]
    """Test prompts by length, with the tokens that are written after them."""
    share: float
    """Training rows of the task for each that was looked at."""
    asked_share: float
    sampled: bool


@dataclass
class Counter:
    """Tokenises tasks, each once; remembers the longest row."""

    spec: RunSpec
    encoder: Encoder
    world: int
    singly: bool = False
    """Whether data passes take one row at a time."""
    soft: int = 0
    """Positions that soft prompts take in a row."""
    longest: int = 0
    answer: int = 0
    _known: dict[str, Texts] = field(default_factory=dict)

    def texts(self, task: Task) -> Texts:
        """The batches of a task."""
        if task.name not in self._known:
            self._known[task.name] = self._texts(task)
        return self._known[task.name]

    def _texts(self, task: Task) -> Texts:
        pairs = self._lengths(task.train)
        rows = [self._read(prompt, answer) for prompt, answer in pairs]
        self.longest = max(self.longest, *(read for read, _ in rows))
        self.answer = max(self.answer, *(answer for _, answer in rows))
        mixed = list(rows)
        random.Random(0).shuffle(mixed)  # as training does; in their own order, rows of a kind may stand together
        trained = in_batches(mixed, batch_shape(self.spec, self.world).micro)
        size = self.spec.eval.batch_size
        written = min(self.encoder.generated(task), self.answer)
        asked = [(self.soft + prompt, written) for prompt, _ in self._lengths(task.test)]
        return Texts(
            tokens=sum(prompt + answer for prompt, answer in pairs),
            run=sum(batch.rows * (batch.source - self.soft) for batch in trained),
            trained=trained,
            passed=in_batches(sorted(rows, reverse=True), 1 if self.singly else size),
            asked=in_batches(sorted(asked, reverse=True), size, self.spec.eval.batch_tokens),
            share=len(task.train) / len(rows),
            asked_share=len(task.test) / max(1, len(asked)),
            sampled=len(rows) < len(task.train),
        )

    def _lengths(self, examples: Sequence[Example]) -> list[tuple[int, int]]:
        """Tokens of the prompts and of the answers that are looked at."""
        encoded = self.encoder.encode(spread(examples, LOOKED_AT))
        return [(len(one.prompt), len(one.answer)) for one in encoded]

    def _read(self, prompt: int, answer: int) -> tuple[int, int]:
        """Tokens that the model reads of a training row, and those that it predicts."""
        return self.soft + prompt + (0 if self.encoder.encoder_decoder else answer), answer


def in_batches(lengths: Sequence[tuple[int, int]], size: int, tokens: int | None = None) -> tuple[Batch, ...]:
    """Rows of these lengths (read, answer), cut as `cuts` does, each batch as long as its longest."""
    cut = (lengths[place] for place in cuts([read for read, _ in lengths], size, tokens))
    return tuple(Batch(len(rows), max(read for read, _ in rows), max(answer for _, answer in rows)) for rows in cut)
