"""From a row of a table to a text with its answers: columns, templates, labels, chats. Every failure names its place."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raycl.errors import DataError, shown
from raycl.tasks.rows import Row, Skip, checked_label, checked_text, complaint, left_out, shorten
from raycl.tasks.stream import TaskEntry, is_template
from raycl.tasks.task import Turns
from raycl.tasks.templates import as_text, render

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
"""Roles of a message, by the words in use."""
_MEND = "correct the row or remove it"


@dataclass(frozen=True)
class Mapper:
    """Reads one task's rows."""

    input: str | None
    """Column of the text, or a template over the row; none in a task of chats."""
    answers: tuple[str, ...]
    """Columns of the references."""
    messages: str | None = None
    labels: tuple[str, ...] | None = None
    """What an answer must be; none = any text."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Label for a raw value."""
    drop: frozenset[str] = frozenset()
    weight: float | str = 1.0

    def __call__(self, item: Any, where: str) -> Row | Skip:
        """The row; or why it is left out. Raises DataError."""
        if not isinstance(item, Mapping):
            raise complaint(where, f"a row is {shorten(item)}", "a mapping of columns", _MEND)
        weight = self._weight(item, where)
        if self.messages is not None:
            history, text, answer = self._chat(
                _column(item, self.messages, where), f"{where}, column {shown(self.messages)}"
            )
            return self._row(text, [answer], weight, where, history)
        return self._row(self._text(item, where), self._references(item, where), weight, where)

    def _row(self, text: str, answers: list[str], weight: float, where: str, chat: Turns = ()) -> Row | Skip:
        """The row, if its answers are ones that the task has."""
        mapped = [self.values.get(answer, answer) for answer in answers]
        if skipped := left_out(answers, self.drop) or left_out(mapped, self.drop):
            return skipped
        for raw, answer in zip(answers, mapped, strict=True) if self.labels else ():
            if raw in self.values or not self._doubtful:
                checked_label(answer, self.labels or (), where)
            else:
                checked_label(raw, tuple(self.values), where)
        return Row(text, tuple(dict.fromkeys(mapped)), "", weight, chat)

    @functools.cached_property
    def _doubtful(self) -> bool:
        """Whether a label may also be a raw value of another one (`{0: 1, 1: 2}`): then only raw values are allowed."""
        return any(self.values.get(label, label) != label for label in self.values.values())

    def _text(self, item: Mapping[str, Any], where: str) -> str:
        name = self.input or ""
        if not is_template(name):
            return checked_text(as_text(_column(item, name, where)), f"{where}, column {shown(name)}")
        try:
            text = render(name, {"row": item, **item})
        except ValueError as error:
            columns = f"the row's columns ({', '.join(map(str, item))}; `row['a name']` for names with spaces)"
            raise complaint(
                where, f"the template of `input` fails ({error})", columns, "correct the template"
            ) from None
        return checked_text(text, f"{where}, what `input` renders")

    def _references(self, item: Mapping[str, Any], where: str) -> list[str]:
        """The texts in the answer columns; a list in one of them holds several. The first column may not be empty."""
        found: list[str] = []
        for place, name in enumerate(self.answers):
            value = _column(item, name, where)
            several = value if isinstance(value, (list, tuple)) else [value]
            texts = [as_text(one) for one in several]
            if place and all(one is None or not str(one).strip() for one in texts):
                continue
            kept = [one for one in texts if not isinstance(one, str) or one.strip()] or texts
            found += [checked_text(one, f"{where}, column {shown(name)}") for one in kept] or [
                checked_text(None, f"{where}, column {shown(name)}")
            ]
        return found

    def _chat(self, value: Any, where: str) -> tuple[Turns, str, str]:
        """The messages before the last question, the question, and its answer."""
        if not isinstance(value, (list, tuple)) or len(value) < 2:
            raise complaint(where, f"got {shorten(value)}", "a list of at least two messages", _MEND)
        turns = tuple(_turn(one, f"{where}, message {place}") for place, one in enumerate(value, start=1))
        if (turns[-2][0], turns[-1][0]) != ("user", "assistant"):
            raise complaint(
                where,
                f"ends with {turns[-2][0]}, {turns[-1][0]}",
                "a message of the user and then of the assistant",
                _MEND,
            )
        return turns[:-2], turns[-2][1], turns[-1][1]

    def _weight(self, item: Mapping[str, Any], where: str) -> float:
        if not isinstance(self.weight, str):
            return self.weight
        value = _column(item, self.weight, where)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise complaint(
                f"{where}, column {shown(self.weight)}", f"got {shorten(value)}", "a number of at least 0", _MEND
            )
        return number


def mapper_of(entry: TaskEntry) -> Mapper:
    """How a task of one's own reads its rows."""
    answers = tuple(entry.answers or ([entry.answer] if entry.answer else []))
    labels = tuple(entry.labels) if entry.labels else None
    drop = frozenset(entry.drop)
    return Mapper(entry.input, answers, entry.messages, labels, entry.values, drop, entry.weight)


def _column(item: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in item:
        raise _no_column(item, name, where)
    return item[name]


def _no_column(item: Mapping[str, Any], name: str, where: str) -> DataError:
    return complaint(
        where,
        f"there is no column {shown(name)}",
        ", ".join(map(str, item)) or "none",
        "correct the name in the stream's file",
    )


def _turn(value: Any, where: str) -> tuple[str, str]:
    """A message as (role, text), in the form of {role, content} or of {from, value}."""
    if not isinstance(value, Mapping):
        raise complaint(where, f"got {shorten(value)}", "a mapping with `role` and `content`", _MEND)
    role = ROLES.get(str(value.get("role", value.get("from"))))
    if role is None:
        raise complaint(where, f"role {shorten(value.get('role', value.get('from')))}", ", ".join(ROLES), _MEND)
    return role, checked_text(value.get("content", value.get("value")), f"{where}, its text")
