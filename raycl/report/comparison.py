"""A comparison's leaderboard as text: terminal, Markdown, LaTeX, CSV; and what is shown while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.leaderboard import MEASURES, CellResult, Leaderboard, Line, measured
from raycl.analysis.published import TABLES, Borrowed
from raycl.analysis.stats import Spread
from raycl.files import Json, finite, write_json, write_text
from raycl.report.cards import markdown_table
from raycl.report.tables import in_markdown, in_pieces, number
from raycl.report.terminal import standard_output

LEGEND = (
    "Mean ± standard deviation over (order, seed) pairs, n of them; [95 % interval of the mean, BCa bootstrap]. AP: average "
    "score after the last stage; FT: forgetting; BWT, FWT: backward and forward transfer; IM: intransigence, how far each "
    "task's score at its own stage falls short of `per_task`. Time: minutes of training, data passes and scoring, without "
    "start-up, builds and waiting. Parameters: numbers that train in a stage. State: what a sequence takes in the store."
)
BORROWED = "Borrowed from a paper: other models, data and budgets. Not made by raycl, not part of the leaderboard."
COLUMNS = ("method", "n", "AP", "95 % interval", *MEASURES[1:], "min", "parameters", "state MB", "above")


def texts(line: Line) -> list[str]:
    """A line's cells under `COLUMNS`."""
    name = f"{line.label} (bound)" if line.bound else line.label
    n = f"{line.n}" + (f" ({line.failed} failed)" if line.failed else "")
    ap = line.measures["AP"]
    interval = "-" if math.isnan(ap.low) else f"{ap.low:.1f} to {ap.high:.1f}"
    measures = [_plus_minus(line.measures[name]) for name in MEASURES[1:]]
    costs = [number(line.minutes.mean), f"{line.trainable:,}" if line.n else "-", number(line.megabytes.mean, 2)]
    return [name, n, _plus_minus(ap), interval, *measures, *costs, ", ".join(line.above) or "-"]


def _plus_minus(values: Spread) -> str:
    """`71.2 ± 0.8`, without the deviation where there is none."""
    return number(values.mean) + ("" if math.isnan(values.sd) else f" ± {values.sd:.1f}")


def leaderboard_rows(board: Leaderboard) -> list[dict[str, str]]:
    """The lines by column, as text."""
    return [dict(zip(COLUMNS, texts(line), strict=True)) for line in board.lines]


def difference_rows(board: Leaderboard) -> list[dict[str, str]]:
    """Every two ranked methods by column, as text, the largest difference of AP first."""
    tests = sorted((one for one in board.tests if one.n), key=lambda one: -one.difference)
    return [
        {
            "first": one.first,
            "second": one.second,
            "pairs": str(one.n),
            "AP difference": f"{one.difference:+.2f}",
            "95 % interval": "-" if math.isnan(one.low) else f"{one.low:.2f} to {one.high:.2f}",
            "p": "-" if math.isnan(one.corrected) else f"{one.corrected:.3g}",
            "claimed": "yes" if one.claimed else "no",
        }
        for one in tests
    ]


def borrowed_tables(methods: Sequence[str]) -> list[Borrowed]:
    """The papers' tables that have a row for one of these methods, reduced to such rows."""
    found = []
    for table in TABLES:
        rows = {name: values for name, values in table.rows.items() if name.split(" ")[0].rstrip(",") in methods}
        if rows:
            found.append(Borrowed(table.source, table.setting, table.columns, rows, table.second_hand))
    return found


def markdown(board: Leaderboard, cells: Sequence[CellResult], borrowed: Sequence[Borrowed]) -> str:
    """Leaderboard, what it allows to say, what failed; borrowed figures under a heading of their own."""
    parts = [markdown_table(COLUMNS, (map(in_markdown, texts(line)) for line in board.lines)), LEGEND]
    parts.append("\n".join(f"- {in_markdown(words)}" for words in board.words))
    failures = [
        f"- {in_markdown(f'{cell.label}, {cell.order}, seed {cell.seed}: {_one_line(cell.error)}')}"
        for cell in cells
        if cell.error
    ]
    if failures:
        parts += ["## Failed sequences", "\n".join(failures)]
    if borrowed:
        parts += ["## Borrowed figures", BORROWED]
    for table in borrowed:
        rows = [(name, *values) for name, values in table.rows.items()]
        doubt = " Taken from later papers and digests, not checked against the paper." if table.second_hand else ""
        parts += [f"{table.source}: {table.setting}.{doubt}", markdown_table(("row", *table.columns), rows)]
    return "\n\n".join(parts) + "\n"


def latex(board: Leaderboard) -> str:
    """A `tabular` for the package booktabs, bounds below a rule."""
    frame = pd.DataFrame([texts(line) for line in board.lines], columns=list(COLUMNS))
    frame = frame.replace(r" ± ", "PLUSMINUS", regex=True)
    text = frame.to_latex(index=False, escape=True, column_format="l" + "r" * (len(COLUMNS) - 2) + "l")
    text = text.replace("PLUSMINUS", r" $\pm$ ")
    first = next((texts(line)[0] for line in board.lines if line.bound), None)
    if first is not None and not all(line.bound for line in board.lines):
        start = first.replace("_", r"\_")
        text = text.replace(f"\n{start} ", f"\n\\midrule\n{start} ", 1)
    return text


def leaderboard_frame(board: Leaderboard) -> pd.DataFrame:
    """One row per entry, numbers only: `AP_mean`, `AP_sd`, `AP_low`, `AP_high`, `AP_n`, ..."""
    rows = []
    for line in board.lines:
        row: Json = {"method": line.label, "bound": line.bound, "cells": line.cells, "failed": line.failed}
        spreads = [*line.measures.items(), ("minutes", line.minutes), ("megabytes", line.megabytes)]
        for name, values in spreads:
            row |= {f"{name}_{part}": getattr(values, part) for part in ("n", "mean", "sd", "low", "high")}
        rows.append(row | {"trainable_parameters": line.trainable, "above": "; ".join(line.above)})
    return pd.DataFrame(rows)


def cells_frame(cells: Sequence[CellResult]) -> pd.DataFrame:
    """One row per sequence, failed ones with their message."""
    return pd.DataFrame([cell_record(cell, cells) for cell in cells])


def cell_record(cell: CellResult, cells: Sequence[CellResult]) -> Json:
    """A sequence of the comparison as flat data."""
    view = cell.finished
    costs: Json = dict.fromkeys(("seconds", "scoring_seconds", "trainable_parameters", "bytes"))
    if view is not None:
        costs |= {"seconds": view.seconds, "scoring_seconds": sum(view.scoring.values())}
        costs |= {"trainable_parameters": view.trainable, "bytes": view.bytes}
    place: Json = {
        "label": cell.label,
        "method": cell.method,
        "bound": cell.bound,
        "order": cell.order,
        "seed": cell.seed,
    }
    state = {"status": "failed" if cell.error else "finished", "error": _one_line(cell.error)}
    return place | state | finite(measured(cell, cells)) | costs


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def write_comparison(
    folder: Path,
    board: Leaderboard,
    cells: Sequence[CellResult],
    record: Mapping[str, Any],
    borrowed: Sequence[Borrowed],
) -> dict[str, Path]:
    """Write leaderboard.csv/.md/.tex, cells.csv and compare.json (all of it, and `record`), each file at once."""
    folder.mkdir(parents=True, exist_ok=True)
    texts_by_name = {
        "leaderboard.csv": leaderboard_frame(board).to_csv(index=False, lineterminator="\n"),
        "leaderboard.md": markdown(board, cells, borrowed),
        "leaderboard.tex": latex(board),
        "cells.csv": cells_frame(cells).to_csv(index=False, lineterminator="\n"),
    }
    written = {name: write_text(folder / name, text) for name, text in texts_by_name.items()}
    whole = {**record, "leaderboard": board.to_json()}
    return written | {"compare.json": write_json(folder / "compare.json", whole, indent=2)}


class ComparisonTerminal:
    """Shows a comparison in plain lines, and the leaderboard at its end."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` none = standard output."""
        self.console = console or standard_output()

    def line(self, text: str) -> None:
        """One line, never broken by us."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def leaderboard(self, board: Leaderboard) -> None:
        """Print the table, bounds dim, and what may be said of it; a narrow window gets it in pieces."""
        self.line("")
        self.line("Leaderboard by AP (mean ± standard deviation over order and seed)")
        rows = [[Text(text, "dim" if line.bound else "") for text in texts(line)] for line in board.lines]
        for table in in_pieces(COLUMNS, rows, self.console.width, ("method", "above")):
            self.console.print(table)
        for words in board.words:
            self.line(words)

    def failures(self, cells: Sequence[CellResult]) -> None:
        """Print what failed and why."""
        failed = [cell for cell in cells if cell.error]
        if failed:
            self.line(f"{len(failed)} of {len(cells)} sequences failed:")
        for cell in failed:
            self.line(f"  {cell.label}  {cell.order}  seed {cell.seed}: {_one_line(cell.error)}")

    def borrowed(self, tables: Sequence[Borrowed]) -> None:
        """Print the papers' figures, apart from the leaderboard."""
        if tables:
            self.line("")
            self.line(BORROWED)
        for table in tables:
            grid = Table(title=f"{table.source}: {table.setting}", box=None, title_justify="left", style="dim")
            for place, column in enumerate(("row", *table.columns)):
                grid.add_column(column, justify="right" if place else "left")
            for name, values in table.rows.items():
                grid.add_row(name, *("-" if value is None else str(value) for value in values))
            self.console.print(grid)
