"""Tasks on the terminal: what a check found, a task as its stream describes it, examples as a model reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raycl.report.tables import short
from raycl.report.terminal import standard_output
from raycl.tasks.duplicates import Place, Twins
from raycl.tasks.findings import SHARES, Sample, StreamCheck, TaskCheck
from raycl.tasks.stream import TaskEntry

LABELS_SHOWN = 12
TWINS_SHOWN = 12
PROMPT_SHOWN = 700
"""Characters of a prompt that are shown: of a longer one its beginning and its end."""


def print_check(check: StreamCheck, console: Console | None = None) -> None:
    """Everything that `raycl tasks check` found."""
    console = console or standard_output()
    for task in check.tasks:
        _print_task(task, console)
    _print_twins(check.twins, console)
    limits = ", ".join(f"{name} {value:,}" for name, value in check.limits.items())
    console.print(f"limits: {escape(limits)}", soft_wrap=True)
    for line in check.too_long:
        console.print(f"[bold]problem[/bold]  {escape(line)}", soft_wrap=True)
    if check.left_out:
        names = ", ".join(check.left_out)
        console.print(f"not looked at, since published tasks need --data: {escape(names)}", soft_wrap=True)
    problems = check.problems
    verdict = "a run would start" if not problems else f"a run would be refused: {len(problems)} to mend (see above)"
    console.print(f"[bold]{verdict}[/bold]")


def _print_task(task: TaskCheck, console: Console) -> None:
    rows = ", ".join(f"{split} {count:,}" for split, count in task.rows.items())
    console.print(
        f"[bold]{escape(task.name)}[/bold]  {rows}  scored by {', '.join(map(escape, task.metric))}", soft_wrap=True
    )
    if task.labels is not None:
        shown = [f"{label} {train:,}/{test:,}" for label, (train, test) in list(task.labels.items())[:LABELS_SHOWN]]
        more = f" and {len(task.labels) - LABELS_SHOWN} more" if len(task.labels) > LABELS_SHOWN else ""
        console.print(f"  labels (train/test)  {escape(', '.join(shown))}{more}", soft_wrap=True)
    for name, values in (("prompt tokens", task.prompt_tokens), ("answer tokens", task.answer_tokens)):
        if values:
            console.print(f"  {name:<19}  {_percentiles(values)}", soft_wrap=True)
    if task.cut_prompts:
        console.print(f"  {'cut prompts':<19}  {task.cut_prompts:.1%} lose the end of their text", soft_wrap=True)
    for kind, lines in (("warning", task.warnings), ("problem", task.problems)):
        for line in lines:
            console.print(f"  [bold]{kind}[/bold]  {escape(line)}", soft_wrap=True)
    print_samples(task.samples, console)


def _percentiles(values: Iterable[int]) -> str:
    """As `half 12, 90 % 20, 99 % 30, longest 31`."""
    names = {0.5: "half", 1.0: "longest"}
    parts = zip(SHARES, values, strict=True)
    return ", ".join(f"{names.get(share, f'{share:.0%}'.replace('%', ' %'))} {value:,}" for share, value in parts)


def print_samples(samples: Iterable[Sample], console: Console | None = None) -> None:
    """Examples; what trains stands out."""
    console = console or standard_output()
    for sample in samples:
        cut = ", cut" if sample.cut else ""
        console.print(
            f"  example {escape(sample.id)}  ({sample.tokens[0]} + {sample.tokens[1]} tokens{cut})", style="dim"
        )
        text = Text(_indented(_shown(sample.prompt)))
        text.append(_indented(sample.answer, first=""), style="bold reverse")
        console.print(text, soft_wrap=True)


def _shown(prompt: str) -> str:
    half = PROMPT_SHOWN // 2
    return prompt if len(prompt) <= PROMPT_SHOWN else f"{prompt[:half]} [...] {prompt[-half:]}"


def _indented(text: str, first: str = "    | ") -> str:
    return first + text.replace("\n", "\n    | ")


def _print_twins(twins: Iterable[Twins], console: Console) -> None:
    """The gravest first: what is trained and tested, then what leaks between tasks, then the rest."""
    found = sorted(twins, key=_gravity)
    for one in found[:TWINS_SHOWN]:
        alike = ", ".join(
            f"{count:,} {kind}" for kind, count in (("equal", one.exact), ("nearly equal", one.near)) if count
        )
        console.print(f"[bold]duplicates[/bold]  {alike}: {escape(_pair(one.one, one.other))}", soft_wrap=True)
    if len(found) > TWINS_SHOWN:
        console.print(
            f"[bold]duplicates[/bold]  and in {len(found) - TWINS_SHOWN} more pairs of tables", soft_wrap=True
        )


def _gravity(twins: Twins) -> int:
    one, other = twins.one, twins.other
    return 0 if one.task == other.task and one != other else 1 if one.split != other.split else 2


def _pair(one: Place, other: Place) -> str:
    """What sharing rows means."""
    if one == other:
        return f"within {one.task} {one.split}"
    if one.task == other.task:
        return f"{one.task}: test rows that are also trained, so that its score is too high"
    sides = f"{one.task} {one.split} and {other.task} {other.split}"
    return f"{sides}: a leak between tasks" if one.split != other.split else sides


def print_tasks(entries: Mapping[str, tuple[str, TaskEntry]], console: Console | None = None) -> None:
    """A table of tasks: `entries` are by name, each with its stream."""
    console = console or standard_output()
    table = Table(box=None, pad_edge=False)
    for title in ("task", "stream", "category", "labels", "metric", "licence"):
        table.add_column(title, overflow="fold")
    for name, (stream, entry) in entries.items():
        labels = "free text" if not entry.labels else str(len(entry.labels))
        labels = "from data" if entry.labels_from_data else labels
        table.add_row(name, stream, entry.category, labels, ", ".join(entry.metric) or "-", short(entry.licence, 40))
    console.print(table)


def print_entry(entry: TaskEntry, console: Console | None = None) -> None:
    """A task as its stream describes it, in YAML; what is at its default is left out."""
    values = entry.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    (console or standard_output()).print(Text(text.rstrip()), soft_wrap=True)
