"""The accuracy matrix and the plan as tables: rich for the terminal, Markdown for files."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence

from rich.table import Table
from rich.text import Text

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import PlannedStage

CELL = 6
"""Terminal columns one score takes: `100.0` and a space."""
FIXED = 10
"""Terminal columns a matrix takes beside names and scores: the stage number and AP."""
LONGEST_NAME = 24
"""Characters of a task's name a row label shows."""


def number(value: float, digits: int = 1) -> str:
    """A score or measure as text; a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def short(text: str, width: int) -> str:
    """`text` cut to `width` characters, with an ellipsis where something is left out."""
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"


def matrix_tables(matrix: AccuracyMatrix, width: int) -> list[Table]:
    """The matrix as rich tables of at most about `width` columns: rows are stages, columns tasks by number.

    Several tables, side by side in meaning, when the tasks do not fit into one. A score on a task not trained yet is
    dim; a cell not measured is empty.
    """
    label = min(LONGEST_NAME, max(len("after stage"), *(len(task) for task in matrix.tasks)), max(width // 3, 6))
    per_table = max((width - label - FIXED) // CELL, 1)
    count = len(matrix.tasks)
    parts = math.ceil(count / per_table)
    per_table = math.ceil(count / parts)  # even parts instead of one full and one nearly empty table
    return [_part(matrix, range(at, min(at + per_table, count)), label) for at in range(0, count, per_table)]


def _part(matrix: AccuracyMatrix, columns: range, label: int) -> Table:
    """The rich table of some of the tasks; AP stands in the one with the last task."""
    with_ap = columns[-1] == len(matrix.tasks) - 1
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("after stage", no_wrap=True, max_width=label)
    for name in [str(i + 1) for i in columns] + (["AP"] if with_ap else []):
        table.add_column(name, justify="right", no_wrap=True, min_width=CELL - 1, style="bold" if name == "AP" else "")
    for stage in range(0 if _has_row(matrix, 0) else 1, len(matrix.tasks) + 1):
        cells = [_cell(matrix, stage, i) for i in columns]
        average = [number(matrix.ap(stage) if stage else math.nan)] if with_ap else []
        name = matrix.tasks[stage - 1] if stage else "untrained"
        table.add_row(str(stage), Text(short(name, label)), *cells, *average)
    return table


def _has_row(matrix: AccuracyMatrix, stage: int) -> bool:
    return not all(math.isnan(value) for value in matrix.cells[stage])


def _cell(matrix: AccuracyMatrix, stage: int, column: int) -> Text:
    value = float(matrix.cells[stage, column])
    return Text("" if math.isnan(value) else number(value), style="dim" if column >= stage else "")


def matrix_markdown(matrix: AccuracyMatrix) -> str:
    """The matrix as a Markdown table: rows are stages, columns tasks; scores on tasks not trained yet in italics."""
    rule = ["---", *["---:"] * (len(matrix.tasks) + 1)]
    lines = [_markdown_row(["after stage", *matrix.tasks, "AP"]), _markdown_row(rule)]
    for stage in range(0 if _has_row(matrix, 0) else 1, len(matrix.tasks) + 1):
        name = f"{stage} {matrix.tasks[stage - 1]}" if stage else "0 untrained"
        texts = ["" if math.isnan(value) else number(value) for value in matrix.cells[stage]]
        texts = [f"*{text}*" if text and i >= stage else text for i, text in enumerate(texts)]
        lines.append(_markdown_row([name, *texts, number(matrix.ap(stage)) if stage else ""]))
    return "\n".join(lines) + "\n"


def in_markdown(text: str) -> str:
    """A text of somebody else's in Markdown: on one line, and without HTML of its own."""
    return html.escape(" ".join(text.splitlines()), quote=False)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(in_markdown(cell).replace("|", "\\|") for cell in cells) + " |"


def plan_table(stages: Sequence[PlannedStage]) -> Table:
    """What a sequence is going to do: per stage its task, key, whether the store holds it, and its examples."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("task", overflow="ellipsis")  # the only column that may shrink
    table.add_column("key", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("train", justify="right", no_wrap=True)
    table.add_column("test", justify="right", no_wrap=True)
    for stage in stages:
        state = Text("stored", style="green") if stage.stored else Text("to run")
        counts = (f"{stage.train:,}", f"{stage.test:,}")
        table.add_row(str(stage.stage), Text(stage.task), stage.key[:12], state, *counts)
    return table


def in_pieces(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int, words: Collection[str], fixed: int = 1
) -> list[Table]:
    """Rows as few tables as `width` characters allow, each with the first `fixed` columns at its left.

    `words` are the columns of text: at the left, and broken where even a table of their own is too wide for them.
    """
    wide = [2 + max(map(len, (column, *(row[place] for row in rows)))) for place, column in enumerate(columns)]
    pieces = [list(range(fixed))]
    for place in range(fixed, len(columns)):
        if len(pieces[-1]) > fixed and sum(wide[n] for n in pieces[-1]) + wide[place] > width:
            pieces.append(list(range(fixed)))
        pieces[-1].append(place)
    return [_piece(columns, rows, words, places) for places in pieces]


def _piece(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], words: Collection[str], places: Sequence[int]
) -> Table:
    """Some of the columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place in places:
        text = columns[place] in words
        name = Text(columns[place])
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        table.add_row(*(row[place] for place in places))
    return table
