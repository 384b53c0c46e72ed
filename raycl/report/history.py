"""The history of a state on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.history import Difference, Entry
from raycl.report.tables import number, short
from raycl.report.terminal import standard_output

VALUE_SHOWN = 40


def print_log(stages: Sequence[Entry], console: Console | None = None) -> None:
    """The stages of a state, newest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "task", "key", "made (UTC)", "seconds", "raycl"):
        table.add_column(title, justify="right" if title in ("stage", "seconds") else "left", overflow="fold")
    for one in reversed(stages):
        made = one.created.replace("T", " ")[:16]
        table.add_row(str(one.stage), Text(one.task), one.key[:12], made, f"{one.seconds:,.1f}", one.commit or "-")
    (console or standard_output()).print(table)


def print_diff(shared: int, changes: Sequence[Difference], console: Console | None = None) -> None:
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


def print_appended(
    before: Mapping[str, float], after: Mapping[str, float], verdict: str, console: Console | None = None
) -> None:
    """Scores before and after one task more, and what is made of them."""
    console = console or standard_output()
    table = Table(box=None, pad_edge=False)
    for title in ("task", "before", "after"):
        table.add_column(title, justify="left" if title == "task" else "right", overflow="fold")
    for task, score in after.items():
        table.add_row(Text(task), number(before[task]) if task in before else "new", number(score))
    console.print(table)
    console.print(verdict, soft_wrap=True)
