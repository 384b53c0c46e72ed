"""The history of a state on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.report.tables import number, short
from raycl.report.terminal import standard_output

VALUE_SHOWN = 40


class Stage(Protocol):
    """What is shown of a stage."""

    @property
    def stage(self) -> int:
        """1-based."""
        ...

    @property
    def task(self) -> str:
        """Its task."""
        ...

    @property
    def key(self) -> str:
        """Its key."""
        ...

    @property
    def created(self) -> str:
        """When."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...

    @property
    def commit(self) -> str:
        """Of raycl's source."""
        ...


class Change(Protocol):
    """What is shown of a difference."""

    @property
    def stage(self) -> int:
        """1-based."""
        ...

    @property
    def field(self) -> str:
        """What differs."""
        ...

    @property
    def one(self) -> str:
        """There."""
        ...

    @property
    def other(self) -> str:
        """And here."""
        ...


def print_log(stages: Sequence[Stage], console: Console | None = None) -> None:
    """The stages of a state, newest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "task", "key", "made (UTC)", "seconds", "raycl"):
        table.add_column(title, justify="right" if title in ("stage", "seconds") else "left", overflow="fold")
    for one in reversed(stages):
        made = one.created.replace("T", " ")[:16]
        table.add_row(str(one.stage), Text(one.task), one.key[:12], made, f"{one.seconds:,.1f}", one.commit or "-")
    (console or standard_output()).print(table)


def print_diff(shared: int, changes: Sequence[Change], console: Console | None = None) -> None:
    """What differs between two states."""
    console = console or standard_output()
    console.print(f"the first {shared} stages are the same" if shared else "no stage is the same")
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "field", "one", "other"):
        table.add_column(title, overflow="fold")
    for one in changes:
        values = (Text(short(value, VALUE_SHOWN)) for value in (one.one, one.other))
        table.add_row(str(one.stage), Text(one.field), *values)
    if changes:
        console.print(table)


class Grown(Protocol):
    """What is shown of a stage more."""

    @property
    def before(self) -> Mapping[str, float]:
        """Scores of the earlier tasks."""
        ...

    @property
    def after(self) -> Mapping[str, float]:
        """Scores of all tasks."""
        ...

    @property
    def forgetting(self) -> float:
        """Points that the earlier ones lost on average."""
        ...


def print_appended(grown: Grown, most: float | None, console: Console | None = None) -> None:
    """What one task more did to the others, and whether that is accepted."""
    console = console or standard_output()
    table = Table(box=None, pad_edge=False)
    for title in ("task", "before", "after"):
        table.add_column(title, justify="left" if title == "task" else "right", overflow="fold")
    for task, score in grown.after.items():
        before = grown.before.get(task)
        table.add_row(Text(task), "new" if before is None else number(before), number(score))
    console.print(table)
    verdict = (
        ""
        if most is None
        else f", at most {most:g} are allowed: {'refused' if grown.forgetting > most else 'accepted'}"
    )
    console.print(f"earlier tasks lost {number(grown.forgetting, 2)} points on average{verdict}", soft_wrap=True)
