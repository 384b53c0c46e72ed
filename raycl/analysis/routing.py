"""What routing is worth: how many inputs found their own task's weights, and which tasks are taken for which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raycl.events import Routing
from raycl.files import Json

Predictions = Mapping[str, Sequence[Json]]
"""Task -> the stored predictions of its test split, each with its `route`."""


def routing_of(after: Predictions, before: Predictions, own: Mapping[str, float]) -> Routing:
    """Count the routes of a row of the accuracy matrix.

    `after` are the row's predictions, by task in the order of training; `before` those of the row before, `own` the scores
    of each task with its own weights alone. Raises KeyError for a prediction without a route.
    """
    tasks = tuple(after)
    ways = {task: [_way(row) for row in rows] for task, rows in after.items()}
    then = {task: [_way(row) for row in before[task]] for task in tasks if task in before}
    moved = [new != old for task, old_ways in then.items() for new, old in zip(ways[task], old_ways, strict=True)]
    scores = [own.get(task, math.nan) for task in tasks]
    return Routing(
        tasks,
        tuple(tuple(ways[task].count(other) for other in tasks) for task in tasks),
        tuple(ways[task].count(None) for task in tasks),
        sum(moved) / len(moved) if moved else math.nan,
        sum(scores) / len(scores),
    )


def _way(row: Json) -> str | None:
    """The task whose weights answered; none = the base model."""
    return row["route"]["task"] if row["route"]["known"] else None


def accuracy(routing: Routing) -> dict[str, float]:
    """Task -> percentage of its inputs that its own weights answered."""
    totals = [sum(row) + unknown for row, unknown in zip(routing.counts, routing.unknown, strict=True)]
    return {task: 100 * routing.counts[i][i] / totals[i] for i, task in enumerate(routing.tasks)}


def measures(routing: Routing) -> dict[str, float]:
    """The whole in figures, 0 to 100: mean accuracy over tasks, shares of all inputs, AP without a wrong route."""
    right = accuracy(routing)
    inputs = sum(map(sum, routing.counts)) + sum(routing.unknown)
    return {
        "routing/accuracy": sum(right.values()) / len(right),
        "routing/unknown": 100 * sum(routing.unknown) / inputs,
        "routing/changed": 100 * routing.changed,
        "routing/oracle_AP": routing.oracle_ap,
    }
