"""Matrices as HTML tables with coloured cells: they can be read, searched, copied and printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib import colors

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.views import SequenceView
from raycl.report.tables import number

GAUGES = {
    "gate_mean": "Gate of each branch: mean over the last batch of the stage. Every gate lies between 0 and 1 by itself.",
    "attention": "Attention to each branch: mean over the last batch of the stage. A row adds up to 1.",
    "chosen": "Earlier tasks by the share of times the stage's bandit chose them; no weight of a branch.",
    "selector_norm": "Length of each task's selectors at the end of the stage; no weight of a branch. 0 = all count alike.",
}
"""Gauge that a method logs as `<name>/<branch>` -> what it is."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and its colours as CSS (empty = none)."""

    text: str
    css: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Heat:
    """A table of cells with its heading."""

    label: str
    note: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def accuracy_heat(one: SequenceView) -> Heat:
    """The accuracy matrix, with AP behind each row; faint: scores on tasks not trained yet."""
    matrix = one.matrix
    count = len(matrix.tasks)
    first = 0 if np.isfinite(matrix.cells[0]).any() else 1
    rows = []
    for stage in range(first, count + 1):
        cells = [_cell(float(matrix.cells[stage, i]), 100, 1, faint=i >= stage) for i in range(count)]
        average = matrix.ap(stage) if stage else math.nan
        rows.append(
            (
                _stage_name(matrix, stage),
                [*cells, Cell("" if math.isnan(average) else number(average), "padding-left:0.8em")],
            )
        )
    columns = [*map(str, range(1, count + 1)), "AP"]
    return Heat(one.label, one.status, "after stage", columns, rows)


def gauge_heats(one: SequenceView) -> list[Heat]:
    """What the method logged of its branches at the end of every stage: one row per stage, one column per branch."""
    return [heat for name in GAUGES if (heat := _gauge_heat(one, name))]


def _gauge_heat(one: SequenceView, name: str) -> Heat | None:
    rows = {stage.stage: _numbered(stage.gauges, f"{name}/") for stage in one.stages}
    columns = sorted({branch for values in rows.values() for branch in values})
    if not columns:
        return None
    # Shares have a scale of their own; a length is seen against the longest.
    top = max(1.0, *(value for values in rows.values() for value in values.values()))
    table = [
        (f"{stage.stage} {stage.task}", [_cell(rows[stage.stage].get(i, math.nan), top, 2) for i in columns])
        for stage in one.stages
    ]
    return Heat(one.label, GAUGES[name], "stage", [str(i) for i in columns], table)


def angle_heat(one: SequenceView) -> Heat | None:
    """Mean principal angle between the branches of any two stages; dark = the same directions."""
    if one.angles is None:
        return None
    names = [f"{stage.stage} {stage.task}" for stage in one.stages]
    rows = [
        (name, [_cell(float(value), 90, 0, faint=i == j) for j, value in enumerate(one.angles[i])])
        for i, name in enumerate(names)
    ]
    return Heat(one.label, "", "stage", [str(stage.stage) for stage in one.stages], rows)


def share_heat(corner: str, note: str, columns: list[str], rows: Sequence[tuple[str, Sequence[float]]]) -> Heat:
    """Shares in percent, rows numbered as the columns are; what is 0 is empty."""
    table = [
        (f"{place} {name}", [_cell(share or math.nan, 100, 0) for share in shares])
        for place, (name, shares) in enumerate(rows, start=1)
    ]
    return Heat("", note, corner, columns, table)


def _cell(value: float, top: float, digits: int, faint: bool = False) -> Cell:
    """A cell coloured by its share of `top`; faint ones have no colour."""
    if math.isnan(value):
        return Cell("")
    text = number(value, digits)
    if faint:
        return Cell(text, faint=True)
    share = min(max(value / top, 0), 1)
    background = colors.to_hex(mpl.colormaps["cividis"](share))
    return Cell(text, f"background:{background};color:{'#000' if share > 0.47 else '#fff'}")


def _numbered(gauges: dict[str, float], prefix: str) -> dict[int, float]:
    """The gauges `<prefix><number>` by number."""
    found = {name.removeprefix(prefix): value for name, value in gauges.items() if name.startswith(prefix)}
    return {int(name): value for name, value in found.items() if name.isdecimal()}


def _stage_name(matrix: AccuracyMatrix, stage: int) -> str:
    return f"{stage} {matrix.tasks[stage - 1]}" if stage else "0 untrained"


def differing(sequences: Sequence[SequenceView]) -> list[str]:
    """The settings that all sequences of a report have, with different values."""
    shared = [
        name for name in (sequences[0].params if sequences else ()) if all(name in one.params for one in sequences)
    ]
    return [name for name in shared if len({one.params[name] for one in sequences}) > 1]
