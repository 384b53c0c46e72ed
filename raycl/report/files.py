"""The files a sequence leaves behind: matrix, figures, summary and spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.routing import accuracy, measures
from raycl.analysis.views import RunView
from raycl.events import Event, Routing, SequenceEnd, SequenceStart
from raycl.files import Json, finite, write_json, write_text, write_whole
from raycl.report.tables import matrix_markdown

DRAWS = find_spec("matplotlib") is not None
"""Whether pictures can be drawn: a machine that only trains may do without."""


class OutputFiles:
    """A listener that writes the outputs of a sequence into a folder once it has come to its end."""

    def __init__(self, folder: Path, view: Callable[[Routing | None], RunView]) -> None:
        """`folder` exists; `view` gives what the sequence's page shows, once it has ended."""
        self.folder, self._view = folder, view
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
            if DRAWS:
                self.written["report.html"] = self._page(event.routing)

    def _page(self, routing: Routing | None) -> Path:
        """Write the page about the sequence."""
        from raycl.report.run_page import write_run_page  # draws figures, which takes a second to import

        return write_run_page(self.folder / "report.html", self._view(routing))


def write_outputs(
    folder: Path, matrix: AccuracyMatrix, spec: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Path]:
    """Write the outputs of a sequence into `folder` and return them as name -> path.

    summary.json holds AP, FT, BWT and FWT after the last scored stage and after every stage (null = undefined), and
    `facts` beside them. Each file is replaced at once, so a reader never meets half of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(matrix) if DRAWS else {}
    return {
        "matrix.csv": write_text(folder / "matrix.csv", matrix.to_csv()),
        "matrix.json": write_json(folder / "matrix.json", matrix.to_json(), indent=2),
        "matrix.md": write_text(folder / "matrix.md", matrix_markdown(matrix)),
        **{name: write_whole(folder / name, draw) for name, draw in pictures.items()},
        "summary.json": write_json(folder / "summary.json", {**summary(matrix), **facts}, indent=2),
        "spec.json": write_json(folder / "spec.json", spec, indent=2),
    }


def _pictures(matrix: AccuracyMatrix) -> dict[str, Callable[[Path], object]]:
    """Name of a picture -> what draws it into a file."""
    from raycl.report import plots  # draws figures, which takes a second to import

    heat_map = plots.heat_map(matrix)
    return {
        "matrix.png": partial(plots.save, heat_map),
        "matrix.svg": partial(plots.save, heat_map),
        "forgetting.png": partial(plots.save, plots.forgetting_curves(matrix)),
        "ap.png": partial(plots.save, plots.ap_curve(matrix)),
    }


def write_routing(folder: Path, routing: Routing) -> dict[str, Path]:
    """Write whose weights answered whose inputs, as name -> path: routing.json with the counts, routing.png the picture."""
    values = {**asdict(routing), "accuracy": accuracy(routing), **measures(routing)}
    written = {"routing.json": write_json(folder / "routing.json", values, indent=2)}
    if DRAWS:
        from raycl.report import plots, routing_plot

        draw = partial(plots.save, routing_plot.confusion(routing))
        written["routing.png"] = write_whole(folder / "routing.png", draw)
    return written


def summary(matrix: AccuracyMatrix) -> dict[str, Any]:
    """The measures as JSON: `stage` (last scored), AP, FT, BWT, FWT, LA there, and `by_stage`; null = undefined."""
    last = matrix.last_stage
    values = {**matrix.summary(last), "LA": matrix.learning_accuracy(last)} if last else {}
    by_stage = [{"stage": t, "task": matrix.tasks[t - 1], **finite(matrix.summary(t))} for t in range(1, last + 1)]
    return {"stage": last, "stages": len(matrix.tasks), **finite(values), "by_stage": by_stage}
