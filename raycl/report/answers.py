"""Answers of a finished state on the terminal, and whose weights gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.views import Given
from raycl.methods.common.base import Route
from raycl.report.tables import number, short
from raycl.report.terminal import standard_output

TEXT_SHOWN = 50


class Shown(Protocol):
    """What is shown of an answer."""

    @property
    def text(self) -> str:
        """The answer."""
        ...

    @property
    def route(self) -> Route | None:
        """Whose weights answered."""
        ...

    @property
    def strengths(self) -> Any:
        """With `mean`: the weight of each branch, on average over the layers; none where nothing weighs them."""
        ...


def print_answers(
    texts: Sequence[str],
    answers: Sequence[Shown],
    branches: Sequence[str],
    explain: bool,
    console: Console | None = None,
) -> None:
    """The answers, a line each; with `explain` a table that says where each comes from."""
    console = console or standard_output()
    if not explain:
        for answer in answers:
            console.print(Text(answer.text), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("text", "answer", "answered by"):
        table.add_column(title, overflow="fold")
    for text, answer in zip(texts, answers, strict=True):
        table.add_row(Text(short(text, TEXT_SHOWN)), Text(answer.text), Text(_by(answer, branches)))
    console.print(table)


def print_predictions(rows: Sequence[Given], of: int, console: Console | None = None) -> None:
    """Prompt, right answer and prediction of test examples, `of` how many there are in all, with the scores."""
    console = console or standard_output()
    for row in rows:
        console.print(Text(f"{row.number} of {of}  score {number(row.score)}", style="bold"), soft_wrap=True)
        lines = [("prompt", row.prompt.strip()), ("right", " or ".join(row.accepted)), ("answer", row.prediction)]
        lines += [] if row.route is None else [("answered by", row.route)]
        for name, text in lines:
            first, *rest = text.splitlines() or [""]
            console.print(Text(f"  {name:12}{first}"), soft_wrap=True)
            for line in rest:
                console.print(Text(f"  {'':12}{line}"), soft_wrap=True)


def _by(answer: Shown, branches: Sequence[str]) -> str:
    """Whose weights answered, strongest first."""
    if answer.route is not None:
        route = answer.route
        sure = f"{route.task} ({number(100 * route.probability)} %)"
        return sure if route.known else f"the base model: like no task, {sure} the likeliest"
    if answer.strengths is None:
        return "all branches alike" if len(branches) > 1 else branches[-1]
    pairs = sorted(zip(answer.strengths.mean, branches, strict=True), reverse=True)
    return ", ".join(f"{name} {number(weight, 2)}" for weight, name in pairs)
