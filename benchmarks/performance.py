"""What raycl costs, row by row against a bar: `python benchmarks/performance.py`.

    --list                     the rows, and which are measured
    --only NAME [NAME ...]     measure these; a name stands for all rows that begin with it
    --again NAME [NAME ...]    measure these anew

Each row is a cell of its own, benchmarks/results/performance/NAME.json: what is there in the row's present version is not
measured again, so an interrupted run goes on. benchmarks/results/performance.md is written from whatever there is, after
every cell; rows that nobody measured are in it as `not run`. Steps are timed as benchmarks/step_time.py does.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from performance_cell import Cell, conditions
from performance_evaluation import EVALUATION_CELLS
from performance_papers import PAPERS_CELLS
from performance_reasons import REASONS, reason
from performance_runs import RUN_CELLS
from performance_steps import STEP_CELLS
from performance_sweeps import SWEEP_CELLS

from raycl.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
CELLS = {cell.name: cell for cell in (*STEP_CELLS, *RUN_CELLS, *EVALUATION_CELLS, *PAPERS_CELLS, *SWEEP_CELLS)}
HEAD = """# Performance

`python benchmarks/performance.py` makes this page alone. A step is one of training: forward pass, penalties, backward pass,
clipping, AdamW, on prompts whose sizes stand beside the figure, with answers of 4 tokens. `x LoRA` is its time over that
of a plain PEFT LoRA of the same rank on the same weights and batch, measured in turn, as the median of the rounds' ratios,
and where the row says so, of three processes'; `x floor` is that over the same ratio in multiply-adds of all linear layers.
The number of branches is that of the frozen ones. Ratios below the floor are no contradiction: PEFT's own layer casts more
than raycl's.

Times were taken in CPU seconds where the row says so: on a machine in use they leave out what others took of the cores, but
not what others took of its caches. `load` is how many processes wanted to run, before and after.
"""


def main() -> None:
    """Measure what is asked for and not there, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    if chosen.list:
        print(
            "\n".join(f"{name}: {'measured' if stored(RESULTS, cell) else 'not run'}" for name, cell in CELLS.items())
        )
        return
    wanted = chosen.again or chosen.only
    for name in named(CELLS, wanted):
        if chosen.again or stored(RESULTS, CELLS[name]) is None:
            print(f"{name} ...", flush=True)
            print(f"{name}: {measured(RESULTS, CELLS[name])['value']:.4g}{CELLS[name].bar.unit}", flush=True)
            write_text(RESULTS / "performance.md", page(RESULTS, CELLS))
    write_text(RESULTS / "performance.md", page(RESULTS, CELLS))


def named(cells: Mapping[str, Cell], wanted: Sequence[str]) -> list[str]:
    """The cells that begin with any of the names. Raises SystemExit for a name that none begins with."""
    for name in wanted:
        if not any(cell.startswith(name) for cell in cells):
            raise SystemExit(f"no row begins with {name!r}; there are {', '.join(cells)}")
    return [cell for cell in cells if cell.startswith(tuple(wanted))]


def stored(results: Path, cell: Cell) -> dict[str, Any] | None:
    """A cell's figure in its present version; none if it was not measured."""
    path = results / "performance" / f"{cell.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record if record.get("version") == cell.version else None


def measured(results: Path, cell: Cell) -> dict[str, Any]:
    """Measure a cell and keep it."""
    before = os.getloadavg()[0]
    figure = cell.measure()
    record = {
        "name": cell.name,
        "version": cell.version,
        "value": figure.value,
        "details": figure.details,
        "conditions": conditions(figure, (before, os.getloadavg()[0])),
    }
    (results / "performance").mkdir(parents=True, exist_ok=True)
    write_json(results / "performance" / f"{cell.name}.json", record)
    return record


def page(results: Path, cells: Mapping[str, Cell], reasons: Mapping[str, str] = REASONS) -> str:
    """The page from whatever was measured; rows that are short of their bar with the reason why."""
    lines = [HEAD, "| row | figure | bar | met | conditions |", "| --- | ---: | ---: | --- | --- |"]
    for cell in cells.values():
        record = stored(results, cell)
        if record is None:
            lines.append(f"| {cell.what} | not run | {cell.bar} | | |")
            continue
        value = record["value"]
        shown = f"{value:.3f}" if value < 10 else f"{value:.1f}"
        met = "yes" if cell.bar.met(value) else "**no**"
        lines.append(f"| {cell.what} | {shown}{cell.bar.unit} | {cell.bar} | {met} | {_said(record)} |")
    return "\n".join([*lines, *_short(results, cells, reasons)]) + "\n"


def _short(results: Path, cells: Mapping[str, Cell], reasons: Mapping[str, str]) -> list[str]:
    """Why rows are short of their bars, each reason once."""
    short: dict[str, list[str]] = {}
    for cell in cells.values():
        record = stored(results, cell)
        if record is not None and not cell.bar.met(record["value"]):
            short.setdefault(reason(cell.name, reasons), []).append(cell.what)
    if not short:
        return []
    said = [f"- *{'; '.join(rows)}*: {why}" for why, rows in short.items()]
    return ["", "## What is short, and why", "", *said]


def _said(record: Mapping[str, Any]) -> str:
    """A record's conditions in a line, and what it adds to them."""
    held = record["conditions"]
    git = held["git"] or {"commit": "unknown", "dirty": False}
    commit = git["commit"][:10] + (" and changes" if git["dirty"] else "")
    note = f"; {record['details']['note']}" if "note" in record["details"] else ""
    return (
        f"{held['hardware']}, {held['threads']} threads, {held['precision']}, torch {held['torch']}, {commit}, "
        f"load {held['load'][0]} to {held['load'][1]}{note}"
    )


if __name__ == "__main__":
    main()
