"""Charts of one sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report.charts import MARGINS, SMALL, Chart, alone
from raycl.report.inline_svg import inline_svg
from raycl.report.run_charts import cost_chart, measure_charts


@pytest.mark.parametrize(("fall", "low", "high"), [(0.0, -0.5, 0.5), (30.0, -4.5, 34.5)])
def test_forgetting_has_room_on_either_side_of_zero(fall: float, low: float, high: float) -> None:
    """Nothing forgotten is half a point up and down, not the rounding of means; else 15 % beyond what there is."""
    matrix = AccuracyMatrix(["a", "b"])
    for stage, task, value in ((1, "a", 50.0), (2, "a", 50.0 - fall), (2, "b", 70.0)):
        matrix.set(stage, task, value)
    axes = Figure().add_subplot()
    measure_charts(matrix)[1].draw(axes)
    assert axes.get_ylim() == pytest.approx((low, high))


def _line(axes: Axes) -> None:
    axes.plot([1, 2], [0, 100])


def test_a_chart_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one has margins by hand, a large one is laid out first; matplotlib alone would draw either twice."""
    seconds = {"training": 2.0, "pass before": 0.0, "pass after": 0.0, "other": 1.0, "scoring": 1.0, "start-up": 0.0}
    small, large = alone(Chart("small", _line)), alone(cost_chart([{"stage": "1 a", **seconds}]))
    (left, bottom), (right, top) = small.axes[0].get_position().get_points()
    assert (left, right, bottom, top) == pytest.approx(tuple(MARGINS.values()))
    assert tuple(small.get_size_inches()) == SMALL and large.get_layout_engine() is not None
    draws: list[Figure] = []
    plain = Figure.draw

    def counted(figure: Figure, *given: Any) -> None:
        draws.append(figure)
        plain(figure, *given)

    monkeypatch.setattr(Figure, "draw", counted)
    for figure in (small, large):
        inline_svg(figure, "f", "title")
    assert draws == [small, large]
