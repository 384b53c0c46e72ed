"""Experiment G: what the test examples alone leave open of a difference between two methods.

Every two methods of a comparison are compared on the answers that the store holds of their last rows. The unit is one test
example of a task; the same examples are drawn for both methods and for all pairs of order and seed, which all answer them.
The interval therefore holds the spread from test examples, and none from orders and seeds: it is the least that there is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from raycl.comparison.grid import GridCell, GridSpec
from raycl.sequence.job import SequenceJob
from raycl.state.store import Store
from raycl.tasks.scoring import score

RESAMPLES = 10_000
SEED = 20_260_101
Correct = dict[str, np.ndarray]
"""Task -> one score, 0 to 100, per test example after the last stage."""


def request_of(folder: Path) -> tuple[GridSpec, Store]:
    """What the comparison in `folder` asked for, and the store it names."""
    record = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return GridSpec.model_validate(record["request"]), Store(record["store"])


def answers(job: SequenceJob) -> Correct:
    """The scores of every answer in a sequence's last row, from the store."""
    row = job.plan.cells_of(max(cell.stage for cell in job.plan.cells))
    found = {}
    for cell in row:
        task = job.task(cell.task)
        given = [str(line["prediction"]) for line in job.store.read_predictions(cell.key)]
        marks = [score(task.metric, [text], [example]) for text, example in zip(given, task.test, strict=True)]
        found[cell.task] = np.array(marks)
    return found


def compared(cells: Sequence[GridCell]) -> list[dict[str, Any]]:
    """Every two methods on the pairs of order and seed that both finished: mean difference of AP and its interval."""
    known = {
        (cell.entry.label, cell.order, cell.seed): answers(cell.job)
        for cell in cells
        if cell.job is not None and not cell.missing()
    }
    labels = list(dict.fromkeys(label for label, *_ in known))
    found = []
    for one, other in combinations(labels, 2):
        pairs = [key[1:] for key in known if key[0] == one and (other, *key[1:]) in known]
        if pairs:
            sides = [[known[label, order, seed] for order, seed in pairs] for label in (one, other)]
            names = [f"{order} seed {seed}" for order, seed in pairs]
            found.append({"first": one, "second": other, "pairs": names} | resampled(*sides))
    return found


def resampled(first: Sequence[Correct], second: Sequence[Correct]) -> dict[str, Any]:
    """Mean AP difference over pairs of sequences, with the 95 % percentile interval from resampled test examples.

    `first[i]` and `second[i]` are a pair. A pair's difference is the mean over its tasks of the mean over a task's examples;
    a task's examples are drawn once for all pairs that have it.
    """
    drawn = np.random.default_rng(SEED)
    weighted: Correct = {}
    each = []
    for a, b in zip(first, second, strict=True):
        each.append(float(np.mean([np.mean(a[task] - b[task]) for task in a])))
        for task in a:
            weighted[task] = weighted.get(task, 0.0) + (a[task] - b[task]) / (len(first) * len(a))
    sums = np.zeros(RESAMPLES)
    for task in sorted(weighted):
        examples = len(weighted[task])
        sums += weighted[task][drawn.integers(0, examples, (RESAMPLES, examples))].mean(axis=1)
    low, high = np.percentile(sums, [2.5, 97.5])
    return {"difference": float(np.mean(each)), "low": float(low), "high": float(high), "each": each}
