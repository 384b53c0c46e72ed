"""The rows of benchmarks/performance.py on evaluation: the test prompts of all tasks that a sequence has seen, answered
three ways (benchmarks/answering.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from answering import Answering, answering
from performance_cell import Bar, Cell, Figure
from steps import in_turn

ROUNDS = 3
SHARING = ("o_lora", "route_lora")
"""Methods of one function, or of one for each route: what prompts begin with is read once."""
GATED = ("gain_lora",)
"""Methods that weigh their branches by the whole prompt, which therefore is read whole."""


def evaluation(method: str, other: Callable[[Answering], list[str]]) -> Figure:
    """How much longer another way takes than raycl's, in fp32, where both give the same predictions."""
    with (
        tempfile.TemporaryDirectory(prefix="raycl-performance-") as folder,
        answering(method, "fp32", Path(folder)) as way,
    ):
        mine, theirs = way.as_raycl(), other(way)
        seconds = in_turn({"raycl": way.as_raycl, "other": partial(other, way)}, ROUNDS)
        alike = sum(one == two for one, two in zip(mine, theirs, strict=True))
        note = (
            f"the demo's four tasks, {way.prompts} prompts of at most 128 tokens, {alike} predictions alike; raycl "
            f"{median(seconds['raycl']):.1f} s"
        )
        ratios = [b / a for a, b in zip(seconds["raycl"], seconds["other"], strict=True)]
        return Figure(median(ratios), details={"note": note, "alike": alike, "prompts": way.prompts, "ratios": ratios})


def _cells(
    kind: str, what: str, bars: Sequence[tuple[str, float]], other: Callable[[Answering], list[str]]
) -> list[Cell]:
    return [
        Cell(
            f"evaluation-{kind}-{name}",
            f"evaluation of `{name}`: {what}, over raycl's",
            Bar(bar, "x", "least"),
            partial(evaluation, name, other),
        )
        for name, bar in bars
    ]


EVALUATION_CELLS = (
    *_cells(
        "papers",
        "padded to the longest, in the data's order, 50 tokens, branch by branch",
        [(name, 5.0) for name in (*GATED, "o_lora")],
        Answering.as_papers,
    ),
    *_cells(
        "tokens",
        "token by token up to the longest label, sorted by length",
        [*((name, 1.15) for name in GATED), *((name, 1.5) for name in SHARING)],
        Answering.token_by_token,
    ),
)
