"""The history of a state on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.ability import Ability
from raycl.analysis.history import Difference, Entry, StageFacts
from raycl.analysis.matrix import AccuracyMatrix
from raycl.report.tables import matrix_tables, number, short
from raycl.report.terminal import standard_output

VALUE_SHOWN = 40


def print_log(stages: Sequence[Entry], console: Console | None = None) -> None:
    """The stages of a state, newest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "task", "key", "made (UTC)", "seconds", "raycl"):
        table.add_column(title, justify="right" if title in ("stage", "seconds") else "left", overflow="fold")
    for one in reversed(stages):
        made = one.created.replace("T", " ")[:16]
        table.add_row(str(one.stage), _task(one), one.key[:12], made, f"{one.seconds:,.1f}", one.commit or "-")
    (console or standard_output()).print(table)


def _task(one: Entry) -> Text:
    """A stage's task, and where its branch was not trained here."""
    return Text(f"{one.task} (imported)" if one.imported else one.task)


def print_state(
    about: Sequence[tuple[str, str]],
    stages: Sequence[StageFacts],
    matrix: AccuracyMatrix | None,
    console: Console | None = None,
) -> None:
    """One state: what it is, what each of its stages holds, first to last, and the scores as far as they are known."""
    console = console or standard_output()
    for name, value in about:
        console.print(Text(f"{name}  {value}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "task", "key", "goes on from", "branch", "holds besides", "MB"):
        table.add_column(title, justify="right" if title in ("stage", "MB") else "left", overflow="fold")
    for one in stages:
        pair = one.branch
        branch = "-" if pair is None else f"rank {pair['rank']}, {pair['modules']} modules"
        besides = ", ".join(f"{name} ({count:,})" for name, count in one.tensors.items()) or "-"
        entry = one.entry
        parent = (one.parent or "-")[:12]
        megabytes = f"{one.size / 1e6:,.1f}"
        table.add_row(str(entry.stage), _task(entry), entry.key[:12], parent, branch, Text(besides), megabytes)
    console.print(table)
    if matrix is not None:
        for part in matrix_tables(matrix, console.width):
            console.print(part)


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


def print_abilities(found: Sequence[Ability], console: Console | None = None) -> None:
    """What the base model and each stage can do beside the tasks; the base model comes first."""
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "task", "perplexity", "of the base's", "instructions followed"):
        table.add_column(title, justify="left" if title == "task" else "right", overflow="fold")
    base = found[0].perplexity
    for one in found:
        plain = "-" if one.perplexity is None else f"{one.perplexity:.2f}"
        ratio = "-" if one.perplexity is None or base is None else f"{one.perplexity / base:.3f} x"
        table.add_row(str(one.stage), Text(one.task), plain, ratio, f"{one.instructions:.0f} %")
    (console or standard_output()).print(table)
