"""Examples as one text that a model can learn to write, and back: "text, marker, answer"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raycl.tasks.task import Example


@dataclass(frozen=True)
class Pair:
    """What a pseudo-example is made of."""

    text: str
    answer: str


@dataclass(frozen=True)
class Layout:
    """What all examples of a task share, and what tells them from other tasks' when they are written."""

    stage: int
    """1-based stage of the task."""
    cue: str
    """The prompt that asks for an example of the task."""
    head: str
    """How every prompt of the task begins, up to where the first differs."""
    tail: str
    """How every prompt ends."""
    labels: Sequence[str]
    """All answers of the task, or none where they are free text."""
    chat: bool = False
    """Whether the tokenizer's chat template goes around the prompts."""
    tokens: int | None = None
    """Longest answer in tokens; none = the run's limit."""

    def record(self) -> dict[str, Any]:
        """As JSON; what is the usual is left out, as in older records."""
        usual = {"chat": False, "tokens": None}
        values = {**asdict(self), "labels": list(self.labels)}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

    def written(self, example: Example, marker: str, words: int) -> str:
        """An example as a text to write: what is its own in the prompt, the body cut to `words` words; marker; answer."""
        before = example.head[len(self.head) :]
        after = example.tail[: len(example.tail) - len(self.tail)]
        body = example.body.split()
        text = example.body if len(body) <= words else " ".join(body[:words])
        return f"{(before + text + after).strip()} {marker} {example.answers[0]}"

    def read(self, text: str, marker: str) -> Pair | None:
        """The pair in a written text; none if marker, text or a known answer is missing."""
        parts = text.split(marker)
        if len(parts) != 2 or not parts[0].strip():
            return None
        known = {_plain(label): label for label in self.labels}
        answer = known.get(_plain(parts[1]), "") if known else parts[1].strip()
        return Pair(parts[0].strip(), answer) if answer else None

    def example(self, name: str, pair: Pair) -> Example:
        """A pair as an example of the task."""
        return Example(name, self.head, pair.text, self.tail, (pair.answer,), () if self.chat else None, self.tokens)


def layout_of(stage: int, examples: Sequence[Example]) -> Layout:
    """The layout of a task. Its answers count as labels where examples have at least two for one on average."""
    head = _beginning([example.head for example in examples])
    tail = _beginning([example.tail[::-1] for example in examples])[::-1]
    answers = sorted({example.answers[0] for example in examples})
    labels = answers if 2 * len(answers) <= len(examples) else []
    cue, first = f"Write an example of task {stage}.", examples[0]
    return Layout(stage, cue, head, tail, labels, first.chat is not None, first.tokens)


def _beginning(texts: Sequence[str]) -> str:
    """The longest beginning that all texts share: that of the first and the last in alphabetical order."""
    first, last = min(texts), max(texts)
    same = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:same]


def _plain(text: str) -> str:
    """Lower case, single spaces: what survives a tokenizer's round trip."""
    return " ".join(text.lower().split())
