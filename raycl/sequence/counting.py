"""The texts of tasks as batches of a model: what is tokenised, and how long the rows are that pass through it together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

from raycl.models.counts import Batch
from raycl.sequence.task_check import spread
from raycl.spec import RunSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder, cuts
from raycl.train.layout import Layout
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
    """One epoch as training lays it out, micro-batch by micro-batch."""
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
    """Tokenises tasks, each once; remembers the largest micro-batch."""

    spec: RunSpec
    encoder: Encoder
    world: int
    singly: bool = False
    """Whether data passes take one row at a time."""
    soft: int = 0
    """Positions that soft prompts take in a row."""
    tokens: int = 0
    """Of the largest micro-batch there may be, padding included."""
    answers: int = 0
    """Of its answers, padded to the longest."""
    _known: dict[str, Texts] = field(default_factory=dict)

    def texts(self, task: Task) -> Texts:
        """The batches of a task."""
        if task.name not in self._known:
            self._known[task.name] = self._texts(task)
        return self._known[task.name]

    def _texts(self, task: Task) -> Texts:
        encoded = self._encoded(task.train)
        rows = [self._read(row) for row in encoded]
        longest = max(answer for _, answer in rows)
        trained = self._laid_out(encoded)
        self._hold(trained, as_batch(rows))
        size = self.spec.eval.batch_size
        written = min(self.encoder.generated(task), longest)
        asked = [(self.soft + len(one.prompt), written) for one in self._encoded(task.test)]
        return Texts(
            tokens=sum(one.tokens for one in encoded),
            run=sum(batch.rows * (batch.source - self.soft) for batch in trained),
            trained=trained,
            passed=in_batches(sorted(rows, reverse=True), 1 if self.singly else size),
            asked=in_batches(sorted(asked, reverse=True), size, self.spec.eval.batch_tokens),
            share=len(task.train) / len(rows),
            asked_share=len(task.test) / max(1, len(asked)),
            sampled=len(rows) < len(task.train),
        )

    def _hold(self, trained: Sequence[Batch], every: Batch) -> None:
        """Remember the largest micro-batch of a task: where each has as many rows, any may have the longest."""
        if self.spec.train.batches != "equal_tokens":
            trained = [replace(every, rows=batch_shape(self.spec, self.world).micro)]
        self.tokens = max(self.tokens, *(batch.rows * batch.source for batch in trained))
        self.answers = max(self.answers, *(batch.rows * batch.answer for batch in trained))

    def _encoded(self, examples: Sequence[Example]) -> Sequence[Encoded]:
        """The examples that are looked at."""
        return self.encoder.encode(spread(examples, LOOKED_AT))

    def _laid_out(self, rows: Sequence[Encoded]) -> tuple[Batch, ...]:
        """An epoch's micro-batches of all workers."""
        shape = batch_shape(self.spec, self.world)
        layout = Layout(rows, shape, self.spec.train.batches)
        draw = torch.Generator().manual_seed(0)
        parts = [layout.parts([rows[place] for place in step]) for step in layout.steps(draw)]
        return tuple(as_batch([self._read(row) for row in part]) for step in parts for part in step)

    def _read(self, row: Encoded) -> tuple[int, int]:
        """Tokens that the model reads of a training row, and those that it predicts."""
        answer = len(row.answer)
        return self.soft + len(row.prompt) + (0 if self.encoder.encoder_decoder else answer), answer


def in_batches(lengths: Sequence[tuple[int, int]], size: int, tokens: int | None = None) -> tuple[Batch, ...]:
    """Rows of these lengths (read, answer), cut as `cuts` does, each batch as long as its longest."""
    return tuple(as_batch(lengths[place]) for place in cuts([read for read, _ in lengths], size, tokens))


def as_batch(rows: Sequence[tuple[int, int]]) -> Batch:
    """Rows of these lengths (read, answer), each as long as the longest."""
    return Batch(len(rows), max(read for read, _ in rows), max(answer for _, answer in rows))
