"""Figures and the files of a sequence."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report import plots
from raycl.report.files import summary, write_outputs

NAMES = {"matrix.csv", "matrix.json", "matrix.md", "matrix.png", "matrix.svg", "forgetting.png", "ap.png"}
NAMES |= {"summary.json", "spec.json"}


def test_outputs(tmp_path: Path, four: AccuracyMatrix) -> None:
    spec = {"order": "std-1", "name": "über"}
    written = write_outputs(tmp_path / "new" / "folder", four, spec, {"seconds": {"train": 1.5}})
    assert written.keys() == NAMES
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == NAMES, "no partial files stay"
    assert written["matrix.png"].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in written["matrix.svg"].read_text()
    assert AccuracyMatrix.from_json(json.loads(written["matrix.json"].read_text())) == four
    assert json.loads(written["spec.json"].read_text()) == spec
    record = json.loads(written["summary.json"].read_text())
    assert (record["AP"], record["FT"], record["stage"], record["seconds"]) == (84.0, 4.0, 4, {"train": 1.5})


def test_outputs_are_replaced_whole_or_not_at_all(tmp_path: Path, four: AccuracyMatrix, monkeypatch) -> None:
    written = write_outputs(tmp_path, four, {"run": 1}, {})
    before = {name: path.read_bytes() for name, path in written.items()}
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_text("half") and 1 / 0)
    four.set(4, "agnews", 10.0)
    with pytest.raises(ZeroDivisionError):
        write_outputs(tmp_path, four, {"run": 2}, {})
    assert written["matrix.png"].read_bytes() == before["matrix.png"]
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def test_the_same_matrix_gives_the_same_figures(tmp_path: Path, four: AccuracyMatrix) -> None:
    first, second = (write_outputs(tmp_path / name, four, {}, {}) for name in "ab")
    assert {name for name in NAMES if first[name].read_bytes() != second[name].read_bytes()} == set()


def test_summary_of_a_stopped_and_of_an_empty_sequence(stopped: AccuracyMatrix) -> None:
    record = summary(stopped)
    assert (record["stage"], record["stages"], record["AP"], record["BWT"]) == (2, 4, 88.0, -2.0)
    assert [row["FT"] for row in record["by_stage"]] == [None, 2.0]
    assert summary(AccuracyMatrix(["a"])) == {"stage": 0, "stages": 1, "by_stage": []}


def test_heat_map_annotates_every_measured_cell(fifteen: AccuracyMatrix) -> None:
    axes = plots.heat_map(fifteen).axes[0]
    assert len(axes.texts) == int((fifteen.cells == fifteen.cells).sum())
    seen = {text.get_text() for text in axes.texts if text.get_style() == "normal"}
    unseen = {text.get_text() for text in axes.texts if text.get_style() == "italic"}
    assert seen == {f"{90.0 - 2 * stage:.1f}" for stage in range(15)}
    assert unseen == {f"{score:.1f}" for score in range(30, 55)}  # untrained 30 to 44, next tasks 41 to 54


def test_forgetting_curves_name_every_line_without_overlap(fifteen: AccuracyMatrix) -> None:
    labels = plots.forgetting_curves(fifteen).axes[0].texts
    heights = sorted(label.xyann[1] for label in labels)
    assert len(heights) == 15
    assert min(b - a for a, b in pairwise(heights)) > 4
    assert 0 <= heights[0] <= heights[-1] <= 103.001


@pytest.mark.parametrize("draw", [plots.heat_map, plots.forgetting_curves, plots.ap_curve])
def test_figures_of_unfinished_sequences(tmp_path: Path, stopped: AccuracyMatrix, draw) -> None:
    for matrix in (AccuracyMatrix(["a"]), AccuracyMatrix(["a", "b"]), stopped):
        plots.save(draw(matrix), tmp_path / "figure.svg")


def test_columns_of_long_names_are_numbered_and_rows_have_the_whole_names(four: AccuracyMatrix) -> None:
    """Short names stand below their columns."""
    names = ["task1572_samsum_summary", "task748_glucose_reverse_cause_event_detection"]
    axes = plots.heat_map(AccuracyMatrix(names)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{names[0]}  1", f"{names[1]}  2"]
    axes = plots.heat_map(four).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(four.tasks)


@pytest.mark.parametrize("count", [1, 2, 4, 15])
def test_cells_keep_their_size_whatever_the_names(count: int) -> None:
    """Long names make the figure wider and not the cells smaller: a score of five characters fits."""
    figure = plots.heat_map(AccuracyMatrix([f"task{i:04d}_multi_woz_user_utterance_generation" for i in range(count)]))
    figure.canvas.draw()
    width = figure.axes[0].get_window_extent().width / figure.dpi
    assert width / count > 0.45


def test_no_label_is_clipped(fifteen: AccuracyMatrix) -> None:
    figure = plots.heat_map(fifteen)
    figure.canvas.draw()
    page = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    for label in [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]:
        box = label.get_window_extent()
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1


def test_neither_mlflow_nor_torch_nor_pyplot_is_imported() -> None:
    code = (
        "import sys, raycl.report.files, raycl.report.terminal\n"
        "print([name for name in ('mlflow', 'torch', 'ray', 'matplotlib.pyplot') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
