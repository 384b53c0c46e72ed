"""A user's texts as a state reads them: whole prompts, or put into the prompt that a task was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raycl.errors import SpecError, shown
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.load import Make
from raycl.tasks.own import is_chat
from raycl.tasks.prompts import Renderer
from raycl.tasks.rows import Row
from raycl.tasks.stream import PromptParts, TaskEntry
from raycl.tasks.task import Example, Turns
from raycl.train.batches import Encoder
from raycl.use.heads import Head


@dataclass(frozen=True)
class TaskPrompts:
    """Puts texts into the prompts of a state's tasks. Its stream is read once, when a task is first asked for."""

    head: Head

    def of_task(self, task: str, text: str) -> Example:
        """A text in the prompt of a task of the run. Raises SpecError for a task that the run's stream does not have."""
        entry = self._entry(task)
        style = self._record(task).get("prompt") or entry.prompt or ("chat" if is_chat(entry) else "plain")
        layout: Any = style if isinstance(style, str | PromptParts) else PromptParts.model_validate(style)
        render = Renderer(entry, layout, self._labels(task), self.head.spec.data.reveal_task)
        return Make(entry, "use", render)(0, Row(text, ("",)))

    @cached_property
    def _tasks(self) -> Mapping[str, TaskEntry]:
        return open_catalogue(self.head.spec.data.stream).tasks

    def _entry(self, task: str) -> TaskEntry:
        """What the run's stream, or a built-in one, says of a task. Raises SpecError for an unknown one."""
        entry = self._tasks.get(task)
        if entry is None:
            raise SpecError(
                f"task: {shown(task)} is unknown to {self.head.name}; allowed: {', '.join(self.head.spec.tasks)}"
            )
        return entry

    def _record(self, task: str) -> Mapping[str, Any]:
        return self.head.records.get(task, {})

    def _labels(self, task: str) -> tuple[str, ...] | None:
        """The labels that a task was trained with, or those of its stream; none for free text."""
        counted = (self._record(task).get("label_counts") or {}).get("train")
        return tuple(counted or self._entry(task).labels or ()) or None


@dataclass(frozen=True)
class Prompts(TaskPrompts):
    """The same with what tokenises them: it knows how long an answer may be."""

    encoder: Encoder

    def whole(self, text: str, chat: Turns | None = None) -> Example:
        """A text as it stands; with `chat` the message of a user after these, in the tokenizer's chat template."""
        return Example("", "", text, "", ("",), chat)

    def limit(self, task: str | None) -> int:
        """Tokens after which an answer ends, as when it was scored: the task's longest label, or the run's limit."""
        if task is None:
            return self.head.spec.data.max_target_tokens
        entry, labels = self._entry(task), self._labels(task)
        words = (*labels, *(word for words in entry.aliases.values() for word in words)) if labels else None
        return self.encoder.limit(words, entry.max_answer_tokens, is_chat(entry))


def encoder_of(head: Head, tokenizer: Any, encoder_decoder: bool) -> Encoder:
    """What tokenises prompts for a state, cut at the run's lengths."""
    data = head.spec.data
    return Encoder(tokenizer, encoder_decoder, data.max_source_tokens, data.max_target_tokens)
