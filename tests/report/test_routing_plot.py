"""The picture of a router says what its counts are."""

from __future__ import annotations

import math

import pytest

from raycl.events import Routing
from raycl.report.routing_plot import BASE, confusion


@pytest.mark.parametrize("unknown", [(0, 0), (0, 1)])
def test_shares_of_each_row_and_a_column_for_the_base_model_where_it_answered(unknown: tuple[int, int]) -> None:
    """Rows in percent, empty where nothing went, and the mean of the diagonal above."""
    routing = Routing(("a $x$ task", "b"), ((3, 1), (0, 4 - unknown[1])), unknown, math.nan, math.nan)
    (axes, _) = confusion(routing).axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    right = 75.0 if unknown[1] else 100.0
    assert texts == {(0, 0): "75.0", (1, 0): "25.0", (1, 1): f"{right:.1f}"} | ({(2, 1): "25.0"} if unknown[1] else {})
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "a $x$ task",
        "b",
        *([BASE] if unknown[1] else []),
    ]
    assert axes.get_title(loc="left") == f"{(75 + right) / 2:.1f} % found their own task"
