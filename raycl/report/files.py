"""The files a sequence leaves behind: matrix, figures, summary and spec."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report import plots
from raycl.report.tables import matrix_markdown


def write_outputs(
    folder: Path, matrix: AccuracyMatrix, spec: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, Path]:
    """Write the outputs of a sequence into `folder` and return them as name -> path.

    summary.json holds AP, FT, BWT and FWT after the last scored stage and after every stage (null = undefined), and
    what is in `extra` beside them. Each file is replaced at once, so a reader never meets half of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heat_map = plots.heat_map(matrix)
    writers: dict[str, Callable[[Path], object]] = {
        "matrix.csv": matrix.to_csv,
        "matrix.json": _json(matrix.to_json()),
        "matrix.md": lambda path: path.write_text(matrix_markdown(matrix), encoding="utf-8"),
        "matrix.png": lambda path: plots.save(heat_map, path),
        "matrix.svg": lambda path: plots.save(heat_map, path),
        "forgetting.png": lambda path: plots.save(plots.forgetting_curves(matrix), path),
        "ap.png": lambda path: plots.save(plots.ap_curve(matrix), path),
        "summary.json": _json({**summary(matrix), **extra}),
        "spec.json": _json(spec),
    }
    return {name: replace(folder / name, write) for name, write in writers.items()}


def summary(matrix: AccuracyMatrix) -> dict[str, Any]:
    """The measures as JSON: `stage` (last scored), AP, FT, BWT, FWT, LA there, and `by_stage`; null = undefined."""
    last = matrix.last_stage
    values = {**matrix.summary(last), "LA": matrix.learning_accuracy(last)} if last else {}
    by_stage = [{"stage": t, "task": matrix.tasks[t - 1], **_nulls(matrix.summary(t))} for t in range(1, last + 1)]
    return {"stage": last, "stages": len(matrix.tasks), **_nulls(values), "by_stage": by_stage}


def _nulls(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN as null, which JSON has."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _json(value: Mapping[str, Any]) -> Callable[[Path], object]:
    """A writer of `value` as strict JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write into a neighbour with the same suffix, then move it to `path`."""
    partial = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
