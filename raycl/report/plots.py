"""Figures of the accuracy matrix: heat map, scores of each task over the stages, AP over the stages.

Figures are drawn without pyplot, so nothing global is touched and any thread may draw. Colours are safe for the common
kinds of colour blindness (cividis; the palette of Okabe and Ito), and no meaning hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report.tables import number, short

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Without the palette's yellow, which is too pale for a line on white."""
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
LONGEST_COLUMN = 16
"""Characters up to which the columns of a matrix are named; beyond, they are numbered, and the rows have the names."""
LONGEST_NAME = 64
"""Characters of a task's name that a label shows: every name of the benchmarks in full."""
LETTER = 0.085
"""Inches that a letter of a label takes at most, on average."""
DPI = 150
REPRODUCIBLE: dict[RcKeyType, object] = {"svg.hashsalt": "raycl", "svg.fonttype": "none"}
"""The same matrix gives the same SVG, with text as text."""
AS_TEXT: dict[RcKeyType, object] = {"text.parse_math": False}
"""A task's name with dollar signs is no formula."""


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`; the suffix (.png or .svg) is the format."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    lay_out(figure)
    with mpl.rc_context(REPRODUCIBLE):
        box = figure.get_tightbbox().padded(0.15)
        figure.savefig(path, dpi=DPI, bbox_inches=box, metadata=metadata)


def lay_out(figure: Figure) -> None:
    """Place the axes once and for all. Left to `savefig`, the whole figure would be drawn twice for every file."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)


def measured(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points (stage, score) whose score is known."""
    return [(stage, score) for stage, score in points if not math.isnan(score)]


def ap_points(matrix: AccuracyMatrix) -> list[tuple[int, float]]:
    """AP (0 to 100) after every stage that has one."""
    return measured((stage, matrix.ap(stage)) for stage in range(1, len(matrix.tasks) + 1))


@mpl.rc_context(AS_TEXT)
def heat_map(matrix: AccuracyMatrix) -> Figure:
    """The matrix, one row per stage and one column per task, on a fixed scale of 0 to 100.

    Colour is for tasks seen; a score on a task not trained yet is grey on hatching, an unmeasured cell empty.
    """
    count = len(matrix.tasks)
    first = 0 if any(not math.isnan(value) for value in matrix.cells[0]) else 1
    stages = range(first, count + 1)
    rows = [_stage_label(matrix, stage) for stage in stages]
    names = _column_names(matrix)
    beside, below = (LETTER * max(map(len, labels)) for labels in (rows, names))
    figure = blank(max(1.5 + beside + 0.55 * count, 4.4), 1.2 + 0.7 * below + 0.42 * len(stages))
    axes = figure.add_subplot()
    colours = mpl.colormaps["cividis"]
    for stage in stages:
        for i in range(count):
            _draw_cell(axes, matrix, stage, i, colours)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count + 0.5, first - 0.5))
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if below > 2 * LETTER else {}
    axes.set_xticks(range(count), names, **turned)
    axes.tick_params(length=0)
    axes.set_yticks(stages, rows)
    axes.set(xlabel="score on task", ylabel="after stage")
    axes.spines[:].set_visible(False)
    bar = cm.ScalarMappable(colors.Normalize(0, 100), colours)
    figure.colorbar(bar, ax=axes, label="score (0 to 100)", fraction=0.05, pad=0.02, aspect=30)
    _title(axes, matrix)
    if _has_forward(matrix):
        note = Patch(facecolor="#f4f4f4", edgecolor="#b5b5b5", hatch="////", label="not trained yet")
        figure.legend(handles=[note], loc="outside upper right", frameon=False, fontsize=8)
    return figure


@mpl.rc_context(AS_TEXT)
def forgetting_curves(matrix: AccuracyMatrix) -> Figure:
    """The score of each task from its own stage on: one line per task, named at its right end."""
    figure = blank(7.5, max(4.0, 0.27 * len(matrix.tasks) + 1.4))
    axes = figure.add_subplot()
    ends: list[tuple[float, float, str, str]] = []
    for i, task in enumerate(matrix.tasks):
        points = measured((stage, matrix.get(stage, task)) for stage in range(i + 1, matrix.last_stage + 1))
        if points:
            colour = OKABE_ITO[i % len(OKABE_ITO)]
            kind = i // len(OKABE_ITO) % len(DASHES)
            axes.plot(*zip(*points, strict=True), color=colour, ls=DASHES[kind], marker=MARKERS[kind], ms=4, lw=1.4)
            text = f"{i + 1}  {short(task, LONGEST_NAME)}  {number(points[-1][1])}"
            ends.append((*points[-1], text, colour))
    _stage_axis(axes, matrix, "score on the task")
    _label_ends(axes, ends)
    axes.set_title("Score of each task from its own stage on", loc="left", fontsize=10)
    return figure


@mpl.rc_context(AS_TEXT)
def ap_curve(matrix: AccuracyMatrix) -> Figure:
    """AP after every stage, with its value at each point."""
    figure = blank(6.5, 3.6)
    axes = figure.add_subplot()
    points = ap_points(matrix)
    if points:
        axes.plot(*zip(*points, strict=True), color=OKABE_ITO[0], marker="o", ms=4, lw=1.6)
    for stage, value in points:
        axes.annotate(number(value), (stage, value), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    _stage_axis(axes, matrix, "AP: mean score of the tasks seen")
    axes.set_title("Average performance after every stage", loc="left", fontsize=10)
    return figure


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_cell(axes: Axes, matrix: AccuracyMatrix, stage: int, column: int, colours: colors.Colormap) -> None:
    """One cell with its score."""
    value = float(matrix.cells[stage, column])
    corner, text = (column - 0.5, stage - 0.5), number(value)
    if math.isnan(value):
        axes.add_patch(Rectangle(corner, 1, 1, fc="none", ec="#ececec", lw=0.8, zorder=0))
        return
    if column >= stage:
        axes.add_patch(Rectangle(corner, 1, 1, fc="#f4f4f4", ec="#d0d0d0", hatch="////", lw=0))
        box = {"facecolor": "#f4f4f4", "edgecolor": "none", "pad": 1.2}
        axes.text(column, stage, text, ha="center", va="center", fontsize=8, style="italic", color="#555555", bbox=box)
        return
    axes.add_patch(Rectangle(corner, 1, 1, fc=colours(value / 100), ec="white", lw=1))
    colour = "black" if value > 55 else "white"
    axes.text(column, stage, text, ha="center", va="center", fontsize=8, color=colour)


def _column_names(matrix: AccuracyMatrix) -> list[str]:
    """The names of the tasks, or their numbers where a name is long: the rows have both."""
    if max(map(len, matrix.tasks)) <= LONGEST_COLUMN:
        return list(matrix.tasks)
    return [str(number) for number in range(1, len(matrix.tasks) + 1)]


def _stage_label(matrix: AccuracyMatrix, stage: int) -> str:
    return f"{short(matrix.tasks[stage - 1], LONGEST_NAME)}  {stage}" if stage else "untrained  0"


def _title(axes: Axes, matrix: AccuracyMatrix) -> None:
    """AP, FT, BWT and FWT after the last scored stage, above the matrix."""
    if matrix.last_stage:
        values = matrix.summary(matrix.last_stage)
        text = "   ".join(f"{name} {number(value, 2)}" for name, value in values.items() if not math.isnan(value))
        axes.set_title(text, loc="left", fontsize=10)


def _has_forward(matrix: AccuracyMatrix) -> bool:
    """Whether a task was scored before its own stage."""
    return any(not math.isnan(v) for stage, row in enumerate(matrix.cells) for v in row[stage:])


def _stage_axis(axes: Axes, matrix: AccuracyMatrix, what: str) -> None:
    """The axes of a curve up to the last scored stage, scores from 0 to 100."""
    last = max(matrix.last_stage, 1)
    axes.set_xticks(range(1, last + 1))
    axes.set(ylim=(-2, 104), xlim=(0.5, last + 0.5), ylabel=what, xlabel="after stage")
    axes.grid(axis="y", color="#e5e5e5", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines (last stage, last score, text, colour) right of the axes, with a thin leader from each line."""
    ordered = sorted(ends, key=lambda end: end[1])
    heights = _apart([score for _, score, _, _ in ordered], gap=105 / max(len(ends), 20))
    left, right = axes.get_xlim()
    x = right + 0.03 * (right - left)
    for (stage, score, text, colour), height in zip(ordered, heights, strict=True):
        leader = {
            "arrowstyle": "-",
            "color": colour,
            "lw": 0.6,
            "alpha": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 0,
            "shrinkB": 3,
        }
        axes.annotate(
            text,
            (stage, score),
            (x, height),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=leader,
        )


def _apart(heights: Sequence[float], gap: float, low: float = 0.0, high: float = 103.0) -> list[float]:
    """Ascending `heights` moved as little as it takes to lie `gap` apart, between `low` and `high` where they fit."""
    up, down = list(heights), list(heights)
    for i in range(1, len(up)):
        up[i] = max(up[i], up[i - 1] + gap)
    for i in range(len(down) - 2, -1, -1):
        down[i] = min(down[i], down[i + 1] - gap)
    # Both keep the gap, so their mean does; it leaves a crowd of labels centred on the lines they name.
    placed = [(a + b) / 2 for a, b in zip(up, down, strict=True)]
    for i in range(len(placed)):
        placed[i] = max(placed[i], low + i * gap)
    for i in range(len(placed)):
        placed[-1 - i] = min(placed[-1 - i], high - i * gap)
    return placed
