"""Charts of one sequence alone: its measures and losses as the stages go by, and where its time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.views import SequenceView, StageView
from raycl.report.charts import GRID, Chart
from raycl.report.plots import OKABE_ITO, measured
from raycl.report.tables import short

LINE = {"color": OKABE_ITO[0], "marker": "o", "ms": 4, "lw": 1.3}
PHASES = {"train": "training", "pass_before": "pass before", "pass_after": "pass after", "other": "other"}
"""Kind of work in a stage's seconds -> how it is called, in the order of bars; start-up and scoring are beside them."""
LONGEST_NAME = 18
LEAST = 0.5
"""Points that an axis of a measure shows on either side of zero: less is rounding."""


def measure_charts(matrix: AccuracyMatrix) -> list[Chart]:
    """AP and FT after every stage."""
    stages = range(1, matrix.last_stage + 1)
    return [
        _measure("AP: mean score of the tasks seen", [(t, matrix.ap(t)) for t in stages], (-2, 104)),
        _measure("FT: forgetting", [(t, matrix.forgetting(t)) for t in stages], None),
    ]


def _measure(title: str, points: Sequence[tuple[int, float]], limits: tuple[float, float] | None) -> Chart:
    """One measure over the stages; without `limits` its own range, with zero and at least half a point on either side."""

    def draw(axes: Axes) -> None:
        if known := measured(points):
            axes.plot(*zip(*known, strict=True), **LINE)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel="after stage", xlim=(0.7, max(len(points), 1) + 0.3))
        if limits:
            axes.set_ylim(limits)
        else:
            axes.axhline(0, color="#000000", lw=0.8)
            axes.margins(y=0.15)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, -LEAST), max(high, LEAST))
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.set_axisbelow(True)

    return Chart(title, draw)


def loss_charts(stages: Sequence[StageView]) -> list[Chart]:
    """The cross-entropy of every stage over its optimizer steps, all to one scale."""
    top = max((step.loss for stage in stages for step in stage.steps if math.isfinite(step.loss)), default=1.0)
    return [_loss(stage, top) for stage in stages if stage.steps]


def _loss(stage: StageView, top: float) -> Chart:
    def draw(axes: Axes) -> None:
        points = measured((step.step, step.loss) for step in stage.steps)
        axes.plot(*zip(*points, strict=True), **{**LINE, "ms": 2.5})
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel="optimizer step", ylabel="nats per token", ylim=(-0.03 * top, 1.08 * top))
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.set_axisbelow(True)

    return Chart(f"{stage.stage} {short(stage.task, 32)}", draw)


def cost_rows(view: SequenceView) -> list[dict[str, object]]:
    """Seconds of every stage by kind of work, its scoring, and what it added to the store; one row per stage."""
    return [
        {
            "stage": f"{stage.stage} {stage.task}",
            **{name: stage.seconds.get(phase, 0.0) for phase, name in PHASES.items()},
            "scoring": view.scoring.get(stage.stage, 0.0),
            "start-up": stage.seconds.get("start_up", 0.0),
            "bytes": stage.bytes,
        }
        for stage in view.stages
    ]


def cost_chart(rows: Sequence[Mapping[str, object]]) -> Chart:
    """One bar per stage, its kinds of work side by side along it."""
    kinds = [*PHASES.values(), "scoring", "start-up"]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            left = 0.0
            for kind, colour in zip(kinds, OKABE_ITO, strict=False):
                seconds = float(str(row[kind]))
                axes.barh(place, seconds, left=left, color=colour, height=0.7, label=None if place else kind)
                left += seconds
        axes.set_yticks(range(len(rows)), [short(str(row["stage"]), LONGEST_NAME) for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="seconds")
        axes.tick_params(axis="y", length=0)
        # Where the layout makes room for it, whatever the number of bars.
        if figure := axes.get_figure(root=True):
            figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower left")

    return Chart("Seconds of every stage", draw, (4.4, 1.5 + 0.26 * len(rows)))
