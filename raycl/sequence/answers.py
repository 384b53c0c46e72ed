"""What a sequence answered, example by example, and what it forgot: read from the store."""

from __future__ import annotations

from collections.abc import Iterator

from raycl.analysis.views import Forgotten, Given, RunView
from raycl.events import Routing
from raycl.sequence.job import SequenceJob
from raycl.sequence.plan import Cell
from raycl.sequence.views import view_of
from raycl.tasks.scoring import score

EXAMPLES = 3
"""Forgotten examples shown of a task."""


def given(job: SequenceJob, stage: int, task: str) -> list[Given]:
    """The answers to a task's test split after `stage` (0 = the untrained model), in its order.

    Raises KeyError where the plan has no such cell, StoreError where the store has not.
    """
    cell = next((one for one in job.plan.cells_of(stage) if one.task == task), None)
    if cell is None:
        raise KeyError(f"{task} after stage {stage}")
    return _given(job, cell)


def _given(job: SequenceJob, cell: Cell) -> list[Given]:
    task = job.task(cell.task)
    rows = job.store.read_predictions(cell.key)
    return [
        Given(
            number,
            example.prompt,
            example.answers,
            row["prediction"],
            score(task.metric, [row["prediction"]], [example], task.code),
            _route(row.get("route")),
        )
        for number, (row, example) in enumerate(zip(rows, task.test, strict=True), start=1)
    ]


def _route(route: dict[str, object] | None) -> str | None:
    """The task whose weights answered; an input that was like no task had none."""
    return str(route["task"]) if route and route["known"] else None


def forgotten(job: SequenceJob, examples: int = EXAMPLES) -> Iterator[Forgotten]:
    """Of every task that ended below its best score, worst first, the examples that lost most since then.

    The loss of a task is its term in FT: from the best of its rows before the last.
    """
    found = [lost for task in job.tasks if (lost := _lost(job, task.name))]
    for _, best, end in sorted(found, key=lambda one: -one[0]):
        both = zip(_given(job, best), _given(job, end), strict=True)
        worse = [(before, after) for before, after in both if after.score < before.score]
        worse.sort(key=lambda pair: pair[1].score - pair[0].score)
        yield from (Forgotten(end.task, best.stage, before, after) for before, after in worse[:examples])


def _lost(job: SequenceJob, task: str) -> tuple[float, Cell, Cell] | None:
    """How far a task ended below its best row, that row's cell and the last one; none where it did not."""
    cells = [cell for cell in job.plan.cells if cell.task == task and cell.seen and job.store.has_scores(cell.key)]
    if len(cells) < 2:
        return None
    *earlier, end = sorted(cells, key=lambda cell: cell.stage)
    best = max(earlier, key=lambda cell: _score(job, cell))
    lost = _score(job, best) - _score(job, end)
    return (lost, best, end) if lost > 0 else None


def _score(job: SequenceJob, cell: Cell) -> float:
    return float(job.store.read_scores(cell.key)["score"])


def run_view(job: SequenceJob, routing: Routing | None) -> RunView:
    """A finished sequence with all that its page shows; no tensor is read."""
    return RunView(view_of(job, angles=False), routing, tuple(forgotten(job)))
