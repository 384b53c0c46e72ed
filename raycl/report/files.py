"""The files a sequence leaves behind: matrix, figures, summary and spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.routing import accuracy, measures
from raycl.events import Event, Routing, SequenceEnd, SequenceStart
from raycl.files import Json, finite, write_json, write_text, write_whole
from raycl.report.tables import matrix_markdown


class OutputFiles:
    """A listener that writes the outputs of a sequence into a folder once it has come to its end."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists."""
        self.folder = folder
        self.written: dict[str, Path] = {}
        """Name -> file, once the sequence has ended well."""
        self._spec: Json = {}

    def handle(self, event: Event) -> None:
        """Note the spec at the start, write at the end."""
        if isinstance(event, SequenceStart):
            self._spec = event.spec
        elif isinstance(event, SequenceEnd) and event.status == "FINISHED":
            matrix = AccuracyMatrix.from_json(event.matrix)
            self.written = write_outputs(self.folder, matrix, self._spec, event.facts)
            if event.routing is not None:
                self.written |= write_routing(self.folder, event.routing)


def write_outputs(
    folder: Path, matrix: AccuracyMatrix, spec: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Path]:
    """Write the outputs of a sequence into `folder` and return them as name -> path.

    summary.json holds AP, FT, BWT and FWT after the last scored stage and after every stage (null = undefined), and
    `facts` beside them. Each file is replaced at once, so a reader never meets half of one.
    """
    from raycl.report import plots  # draws figures, which takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    heat_map = plots.heat_map(matrix)
    pictures: dict[str, Callable[[Path], object]] = {
        "matrix.png": partial(plots.save, heat_map),
        "matrix.svg": partial(plots.save, heat_map),
        "forgetting.png": partial(plots.save, plots.forgetting_curves(matrix)),
        "ap.png": partial(plots.save, plots.ap_curve(matrix)),
    }
    return {
        "matrix.csv": write_whole(folder / "matrix.csv", matrix.to_csv),
        "matrix.json": write_json(folder / "matrix.json", matrix.to_json(), indent=2),
        "matrix.md": write_text(folder / "matrix.md", matrix_markdown(matrix)),
        **{name: write_whole(folder / name, draw) for name, draw in pictures.items()},
        "summary.json": write_json(folder / "summary.json", {**summary(matrix), **facts}, indent=2),
        "spec.json": write_json(folder / "spec.json", spec, indent=2),
    }


def write_routing(folder: Path, routing: Routing) -> dict[str, Path]:
    """Write whose weights answered whose inputs, as name -> path: routing.json with the counts, routing.png the picture."""
    from raycl.report import plots, routing_plot

    values = {**asdict(routing), "accuracy": accuracy(routing), **measures(routing)}
    return {
        "routing.json": write_json(folder / "routing.json", values, indent=2),
        "routing.png": write_whole(folder / "routing.png", partial(plots.save, routing_plot.confusion(routing))),
    }


def summary(matrix: AccuracyMatrix) -> dict[str, Any]:
    """The measures as JSON: `stage` (last scored), AP, FT, BWT, FWT, LA there, and `by_stage`; null = undefined."""
    last = matrix.last_stage
    values = {**matrix.summary(last), "LA": matrix.learning_accuracy(last)} if last else {}
    by_stage = [{"stage": t, "task": matrix.tasks[t - 1], **finite(matrix.summary(t))} for t in range(1, last + 1)]
    return {"stage": last, "stages": len(matrix.tasks), **finite(values), "by_stage": by_stage}
