"""Routes counted by hand."""

from __future__ import annotations

import math

import pytest

from raycl.analysis.routing import accuracy, measures, routing_of
from raycl.files import Json


def rows(*ways: str) -> list[Json]:
    """Predictions with a route each; `-` = the base model answered, whatever the likeliest task was."""
    return [{"route": {"task": "a" if way == "-" else way, "known": way != "-"}} for way in ways]


def test_counts_shares_and_the_ap_of_right_routes() -> None:
    """Task a: 3 of 4 right, one sent to b; task b: 1 of 2, one like no task. Two of the four routes of a have changed."""
    after = {"a": rows("a", "a", "b", "a"), "b": rows("b", "-")}
    routing = routing_of(after, {"a": rows("a", "-", "a", "a")}, {"a": 80.0, "b": 60.0})
    assert (routing.tasks, routing.counts, routing.unknown) == (("a", "b"), ((3, 1), (0, 1)), (0, 1))
    assert accuracy(routing) == {"a": 75.0, "b": 50.0}
    assert measures(routing) == pytest.approx(
        {
            "routing/accuracy": 62.5,
            "routing/unknown": 100 / 6,
            "routing/changed": 50.0,
            "routing/oracle_AP": 70.0,
        }
    )


def test_what_is_not_known_is_not_made_up() -> None:
    """The first row has nothing to compare with, and a task that was not scored alone leaves no mean."""
    routing = routing_of({"a": rows("a")}, {}, {})
    assert math.isnan(routing.changed) and math.isnan(routing.oracle_ap)
    assert accuracy(routing) == {"a": 100.0}


def test_predictions_without_a_route_are_refused() -> None:
    with pytest.raises(KeyError, match="route"):
        routing_of({"a": [{"prediction": "x"}]}, {}, {})
