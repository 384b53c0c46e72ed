"""What a reproduction leaves: measured beside published, cell by cell, as JSON and as a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.files import Json, write_json, write_text
from raycl.report.cards import markdown_table
from raycl.reproduction.form import MODELS, Column, Reproduction, Row
from raycl.reproduction.specs import Place, Sequence
from raycl.reproduction.tables.counts import trained_parameters
from raycl.spec import RunSpec
from raycl.state.environment import describe_environment

WIRED, WITHIN, OUTSIDE, NO_FIGURE, COMPUTED = "wired", "within tolerance", "outside tolerance", "no figure", "computed"
"""Verdicts on a cell."""


def identity(spec: RunSpec) -> str:
    """What tells two sequences apart."""
    return spec.model_dump_json(exclude={"workers"})


def report(
    one: Reproduction, part: Reproduction, place: Place, runs: list[Sequence], matrices: dict[str, AccuracyMatrix]
) -> Json:
    """The table as JSON. `runs` are all sequences of the part that is run, `matrices` those that are finished."""
    cells = []
    for row in part.rows:
        for column in part.columns:
            own = [run for run in runs if run.row == row and run.column == column]
            cells += _cells(one, row, column, place, own, matrices)
    environment = describe_environment()
    done = [cell for cell in cells if cell["verdict"] is not None]
    return {
        "schema": 1,
        "id": one.id,
        "scale": place.scale,
        "title": one.title,
        "published": one.published,
        "second_hand": bool(one.borrowed and one.borrowed.second_hand),
        "tolerance": one.tolerance,
        "tolerance_reason": one.tolerance_reason,
        "unknown": list(one.unknown),
        "cells_in_table": len(one.rows) * sum(len(column.measures) for column in one.columns),
        "cells_finished": len(done),
        "made_with": {name: environment[name] for name in ("libraries", "git")},
        "cells": cells,
    }


def _cells(
    one: Reproduction, row: Row, column: Column, place: Place, own: list[Sequence], matrices: dict[str, AccuracyMatrix]
) -> list[Json]:
    """One record per measure of a cell."""
    expected = one.expected(row, column)
    found = [matrices.get(identity(run.spec)) for run in own]
    cells = []
    for measure in column.measures:
        if measure == "parameters":
            measured: Any = trained_parameters(own[0].spec.method, MODELS[column.model])
        else:
            measured = None if None in found else _mean([_measure(matrix, measure) for matrix in found if matrix])
        judged = _judge(measure, measured, expected[measure], one.tolerance, place)
        facts = {"row": row.label, "column": column.label, "measure": measure, "runs": len(own), "note": row.note}
        cells.append(facts | judged)
    return cells


def _measure(matrix: AccuracyMatrix, measure: str) -> list[float]:
    """A measure of one sequence, as a list with one value, or one per stage."""
    if measure == "AP by stage":
        return [matrix.ap(stage) for stage in range(1, len(matrix.tasks) + 1)]
    return [matrix.summary()[measure]]


def _mean(values: list[list[float]]) -> list[float] | float:
    """The mean over sequences, value by value."""
    means = [sum(column) / len(column) for column in zip(*values, strict=True)]
    return means if len(means) > 1 else means[0]


def _judge(measure: str, measured: Any, expected: float | None, tolerance: float, place: Place) -> Json:
    """The verdict on a cell. At smoke scale it only says that everything ran: the figures are those of a random model."""
    nothing = {"expected": expected, "measured": None, "difference": None}
    if measured is None:
        return nothing | {"verdict": None}
    if measure == "parameters":
        return nothing | {"measured": measured, "verdict": COMPUTED}
    if place.scale == "smoke":
        return nothing | {"verdict": WIRED}
    if isinstance(measured, float) and math.isnan(measured):
        measured = None  # a joint stage has no forgetting
    if expected is None or measured is None:
        return nothing | {"measured": measured, "verdict": NO_FIGURE}
    difference = measured - expected
    verdict = WITHIN if abs(difference) <= tolerance else OUTSIDE
    return {"expected": expected, "measured": measured, "difference": difference, "verdict": verdict}


def report_name(one_id: str, scale: str) -> str:
    """The stem of a report's files."""
    return f"{one_id.replace('/', '-')}-{scale}"


def write_report(folder: Path, record: Json) -> list[Path]:
    """Write a report as JSON and Markdown, each replaced at once."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = report_name(record["id"], record["scale"])
    return [
        write_json(folder / f"{stem}.json", record),
        write_text(folder / f"{stem}.md", markdown(record)),
    ]


def markdown(record: Json) -> str:
    """A report as a page."""
    head = [f"# {record['id']} at {record['scale']} scale", record["title"] + "."]
    if record["published"]:
        doubt = " (second hand: from later papers and digests)" if record["second_hand"] else ""
        head.append(f"Published figures: {record['published']}{doubt}.")
    if {cell["verdict"] for cell in record["cells"]} == {COMPUTED}:
        head.append("Computed from shapes; nothing was trained.")
    elif record["scale"] == "smoke":
        head.append(
            "`wired`: every stage of the cell was trained and scored on a tiny random model with a few examples. "
            "Such figures mean nothing, so none are shown."
        )
    else:
        head.append(f"Tolerance: {record['tolerance']:g} points. {record['tolerance_reason']}")
    titles = ("row", "column", "measure", "published", "measured", "difference", "verdict", "note")
    rows = [
        (
            *(cell["row"], cell["column"], cell["measure"], _number(cell["expected"]), _number(cell["measured"])),
            *(_number(cell["difference"], "+"), cell["verdict"] or "not run", cell["note"]),
        )
        for cell in record["cells"]
    ]
    notes = [f"- {line}" for line in record["unknown"]]
    tail = ["Not known, or not confirmed:", "\n".join(notes)] if notes else []
    count = f"{record['cells_finished']} of {record['cells_in_table']} cells of the table are finished."
    return "\n\n".join([*head, count, markdown_table(titles, rows), *tail]) + "\n"


def _number(value: Any, sign: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_number(one, sign) for one in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:{sign}.2f}"
