"""What a sweep shows and leaves: lines while it runs, the leaderboard of its trials, sweep.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.files import write_text
from raycl.report.plan import aligned
from raycl.report.tables import in_pieces, number, short
from raycl.report.terminal import standard_output

SHOWN = 20
"""Trials of the leaderboard on the terminal; sweep.csv has them all."""
LONGEST_VALUE = 28
"""Characters of a setting's value in the leaderboard."""
COLUMNS = ("place", "trial", "AP", "FT", "stages", "status")
"""Columns of the leaderboard on the terminal before the settings. `rank` is a setting of most methods."""
PAGE_COLUMNS = ("place", "trial", "AP", "FT", "done", "status")
"""The same on the page."""
COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "running": ""}


class SweepTerminal:
    """Shows a sweep: what is planned, one line per finished stage, the leaderboard at its end."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` none = standard output."""
        self.console = console or standard_output()

    def plan(self, size: str, counts: Mapping[str, int] | None, facts: Mapping[str, str]) -> None:
        """Print how large the sweep is, what it runs and where.

        `counts` as `sharing_line` takes them, none if the points are not known yet.
        """
        self._line(f"Sweep: {size}")
        for line in aligned(facts):
            self._line(line)
        if counts:
            self._line(
                f"Stage runs: {counts['needed']:,} needed, {counts['distinct']:,} distinct, {counts['stored']:,} in the "
                f"store, {counts['trained']:,} to train"
            )

    def resumed(self, done: int) -> None:
        """Say that an earlier call's trials are taken up."""
        self._line(f"Resuming: {done} trials are done")

    def note(self, text: str) -> None:
        """Print one line."""
        self._line(text)

    def stage(self, trial: int, row: Mapping[str, Any], stages: int) -> None:
        """Print a finished stage of a trial."""
        how = "trained" if row["trained"] else "shared"
        self._line(f"trial {trial}: stage {row['stage']}/{stages} {row['task']} {how}  AP {_number(row['AP'])}")

    def ended(self, trial: int, status: str, message: str) -> None:
        """Print how a trial ended."""
        first, *rest = message.strip().splitlines() or [""]
        # A heading such as "2 problems in ...:" says nothing without what stands below it.
        told = " ".join([first, *(line.strip(" -") for line in rest[:1])]) if first.endswith(":") else first
        self._line(f"trial {trial}: {status}{f': {told}' if told else ''}")

    def summary(self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], paths: Mapping[str, str]) -> None:
        """Print the leaderboard (rows best first), what sharing saved, and where things are."""
        self._line("")
        for table in leaderboard(rows[:SHOWN], self.console.width):
            self.console.print(table)
        if len(rows) > SHOWN:
            self._line(f"... and {len(rows) - SHOWN} more in sweep.csv")
        self._line(sharing_line(counts))
        for line in aligned(paths):
            self._line(line)

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def sharing_line(counts: Mapping[str, int]) -> str:
    """Stage runs in words: needed, distinct, stored, trained, shared, saved."""
    return (
        f"Stage runs: {counts['needed']:,} needed, {counts['trained']:,} trained, {counts['shared']:,} shared between "
        f"trials, {counts['stored']:,} stored before; {counts['saved']:,} saved"
    )


def leaderboard(rows: Sequence[Mapping[str, Any]], width: int) -> list[Table]:
    """Rows as rich tables: place, trial, measures, the settings that differ; several where `width` is too little for one."""
    settings = settings_of(rows)
    words = ["status", *headings(settings, COLUMNS).values()]
    lines = []
    for row in rows:
        numbers = [str(row["rank"]), str(row["trial"]), _number(row["AP"]), _number(row["FT"])]
        numbers.append(f"{row['done']}/{row['stages']}")
        values = [short(setting_text(row["params"].get(name)), LONGEST_VALUE) for name in settings]
        lines.append([*map(Text, numbers), Text(row["status"], COLOURS.get(row["status"], "")), *map(Text, values)])
    return in_pieces([*COLUMNS[:-1], *words], lines, width, words, fixed=2)


def headings(settings: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Setting -> its column's heading: without `method.`, unless a column of the table is called so already."""
    return {name: name if (short := name.removeprefix("method.")) in taken else short for name in settings}


def page_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trials, best first, as the page shows them: column -> value, the settings by their headings."""
    heads = headings(list(dict.fromkeys(name for row in rows for name in row["params"])), PAGE_COLUMNS)
    return [
        {"place": row["rank"]}
        | {name: row[name] for name in PAGE_COLUMNS[1:]}
        | {head: setting_text(row["params"][name]) for name, head in heads.items() if name in row["params"]}
        for row in rows
    ]


def settings_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which the trials differ; of a single trial all."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    differ = [name for name in names if len({setting_text(row["params"].get(name)) for row in rows}) > 1]
    return differ if len(rows) > 1 else names


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """All trials, best first, one column per setting of the space."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = ["AP", "FT", "BWT", "FWT"]
    writer.writerow(["rank", "trial", *names, *measures, "done", "stages", "status", "message"])
    for row in rows:
        values = [setting_text(row["params"].get(name)) for name in names]
        found = ["" if row[name] is None else row[name] for name in measures]
        ends = [row["done"], row["stages"], row["status"], row["message"]]
        writer.writerow([row["rank"], row["trial"], *values, *found, *ends])
    return write_text(path, text.getvalue())


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def setting_text(value: Any) -> str:
    """A setting's value: numbers short, the rest as JSON."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
