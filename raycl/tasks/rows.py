"""Rows as they come from a source, before sampling and rendering, and the checks every row passes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raycl.errors import DataError, shown
from raycl.tasks.stored import keep
from raycl.tasks.stream import PromptParts, Style
from raycl.tasks.task import Turns

T = TypeVar("T")

SHOWN = 3
"""Problems of one file that are listed; the rest is counted."""


@dataclass(frozen=True)
class Row:
    """One example of a source: its text, the accepted answers, and its definition where the layout has one."""

    text: str
    answers: tuple[str, ...]
    definition: str = ""
    weight: float = 1.0
    chat: Turns = ()
    """Messages before the text, in a task of chats."""


@dataclass(frozen=True)
class Skip:
    """A row that is left out on purpose, with the reason that goes into the task's record."""

    reason: str


@dataclass(frozen=True)
class Split:
    """The rows of one split, and how many were left out for which reason."""

    rows: Sequence[Row]
    dropped: dict[str, int]


@dataclass(frozen=True)
class RawTask:
    """A task as read from its source: everything but the draw and the prompts."""

    layout: str
    style: Style | PromptParts
    labels: tuple[str, ...] | None
    train: Split
    test: Split
    files: dict[str, str] = field(default_factory=dict)
    """File, relative to the source -> SHA-256 of its bytes."""
    details: dict[str, Any] = field(default_factory=dict)
    """More facts for the record, e.g. the hub id."""
    validation: Split | None = None
    """Rows to choose settings on, where the source has any."""


class HubUnreachable(DataError):
    """The hub did not answer at all, so no other task can be had from it either."""


def complaint(where: str, got: str, allowed: str, step: str) -> DataError:
    """A DataError whose text names the place, what was found, what is allowed and the next step."""
    return DataError(f"{where}: {got}; allowed: {allowed}; next step: {step}")


def shorten(value: Any, limit: int = 60) -> str:
    """A value for a message: printable, at most `limit` characters; of a list or an object only the kind."""
    if isinstance(value, (dict, list)):
        return f"a JSON {'object' if isinstance(value, dict) else 'list'} of {len(value)}"
    return shown(value, limit)


def text_of(item: Any, name: str, where: str) -> str:
    """The non-empty text in field `name` of a row. Raises DataError."""
    step = "correct the row or remove it"
    if not isinstance(item, dict):
        raise complaint(where, f"a row is {shorten(item)}", "a JSON object", step)
    if name not in item:
        raise complaint(where, f"field {shown(name)} is missing", f"a text in {shown(name)}", step)
    return checked_text(item[name], f"{where}, field {shown(name)}")


def checked_text(value: Any, where: str) -> str:
    """`value` if it is a text with at least one visible character that UTF-8 can hold. Raises DataError."""
    if not isinstance(value, str) or not value.strip():
        raise complaint(where, f"got {shorten(value)}", "a text that is not empty", "correct the row or remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise complaint(
            where, f"got {shorten(value)}", "text that UTF-8 can hold", "remove the lone surrogate"
        ) from None
    return value


def left_out(answers: Sequence[str], drop: Collection[str]) -> Skip | None:
    """Why a row with these answers is left out: its only answer is one that the task drops."""
    return Skip(f"label {answers[0]!r}") if len(answers) == 1 and answers[0] in drop else None


def checked_label(label: str, labels: tuple[str, ...], where: str) -> str:
    """`label` if it is one of `labels`. Raises DataError with the nearest label."""
    if label in labels:
        return label
    close = difflib.get_close_matches(label[:100], labels, n=1)
    guess = f" (nearest: {close[0]!r})" if close else ""
    raise complaint(
        where, f"label {shorten(label)}{guess}", ", ".join(labels), "correct the label, or add it to the label set"
    )


def collect(items: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Row | Skip], source: str) -> Split:
    """Parse (place, item) pairs into rows; all bad rows end in one DataError, and so does a split without rows.

    Rows go to disk where they are many, so `items` may be longer than memory.
    """
    dropped: Counter[str] = Counter()
    problems: list[str] = []

    def readable() -> Iterator[tuple[str, Any]]:
        try:
            yield from items
        except DataError as error:  # nothing can be read after it
            if not problems:
                raise
            problems.insert(0, str(error))

    def good() -> Iterator[Row]:
        for where, item in readable():
            try:
                parsed = parse(item, where)
            except DataError as error:
                problems.append(str(error))
                continue
            if isinstance(parsed, Skip):
                dropped[parsed.reason] += 1
            else:
                yield parsed

    rows = keep(good(), Row)
    if problems:
        more = [f"{source}: {len(problems) - SHOWN} more rows with problems"] if len(problems) > SHOWN else []
        raise DataError("\n".join(problems[:SHOWN] + more))
    if not rows:
        left = f" ({sum(dropped.values())} left out)" if dropped else ""
        raise complaint(source, f"no usable rows{left}", "at least one row", "restore the file from its source")
    return Split(rows, dict(dropped))


def gather(steps: Iterable[Callable[[], T]]) -> list[T]:
    """The results of all steps; if any fail, one DataError with the problems of all of them. Its kind is the last one's:
    after a `HubUnreachable` no further step is tried, which would only wait for the same time-out."""
    results: list[T] = []
    problems: list[str] = []
    kind = DataError
    for step in steps:
        try:
            results.append(step())
        except HubUnreachable as error:
            problems.append(str(error))
            kind = HubUnreachable
            break
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise kind("\n".join(problems))
    return results
