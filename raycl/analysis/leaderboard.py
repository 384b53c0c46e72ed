"""The leaderboard of a comparison: what each method reached over its (order, seed) pairs, and what may be claimed of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.stats import FEWEST, PairTest, Spread, compare, spread
from raycl.analysis.views import SequenceView
from raycl.files import Json, finite

MEASURES = ("AP", "FT", "BWT", "FWT", "IM")
"""The measures of a sequence after its last stage; IM = intransigence against `per_task`, lower = learns better."""


@dataclass(frozen=True)
class CellResult:
    """What is known of one sequence of a comparison."""

    label: str
    """The entry it belongs to."""
    method: str
    """The method's name in the registry."""
    bound: bool
    order: str
    seed: int
    view: SequenceView | None
    """None = nothing is known of it but the error."""
    error: str | None = None
    defect: bool = False
    """Whether the error is no user's."""

    @property
    def pair(self) -> tuple[str, int]:
        """What it shares with one cell of every other entry."""
        return self.order, self.seed

    @property
    def finished(self) -> SequenceView | None:
        """The sequence, if it came to its end."""
        return self.view if self.error is None else None


@dataclass(frozen=True)
class Line:
    """One entry of the leaderboard."""

    label: str
    bound: bool
    cells: int
    failed: int
    measures: Mapping[str, Spread]
    minutes: Spread
    """Time of a sequence's stages and scores, whichever call made them, without start-up and waiting."""
    trainable: int
    """Numbers that train in the stage that has most of them."""
    megabytes: Spread
    """What a sequence's stages take in the store."""
    above: tuple[str, ...]
    """The entries it is claimed to be better than."""

    @property
    def n(self) -> int:
        """Finished sequences."""
        return self.cells - self.failed


@dataclass(frozen=True)
class Leaderboard:
    """Lines (ranked methods by AP, then bounds), tests, and what they say in words."""

    lines: list[Line]
    tests: list[PairTest]
    words: list[str]

    def to_json(self) -> Json:
        """Plain data, NaN as null."""
        lines = [asdict(line) | {"n": line.n} for line in self.lines]
        return finite({"lines": lines, "tests": [asdict(test) for test in self.tests], "words": self.words})

    def metrics(self) -> dict[str, float]:
        """Means by `measure/label`, for MLflow."""
        return {f"{name}/{line.label}": line.measures[name].mean for line in self.lines for name in MEASURES}


def make_leaderboard(cells: Sequence[CellResult]) -> Leaderboard:
    """Average and test the finished cells; bounds are shown and not tested."""
    measures = {id(cell): measured(cell, cells) for cell in cells}
    by_label: dict[str, list[CellResult]] = {}
    for cell in cells:
        by_label.setdefault(cell.label, []).append(cell)
    ranked = {label: own for label, own in by_label.items() if not own[0].bound}
    scores = {label: {cell.pair: measures[id(cell)]["AP"] for cell in own} for label, own in ranked.items()}
    tests = compare(scores)
    lines = [_line(label, own, [measures[id(cell)] for cell in own], tests) for label, own in by_label.items()]
    lines.sort(key=lambda line: (line.bound, not line.n, -line.measures["AP"].mean if line.n else 0.0))
    return Leaderboard(lines, tests, ranking_words(tests))


def measured(cell: CellResult, cells: Sequence[CellResult]) -> dict[str, float]:
    """The measures of one cell; NaN where it is not finished, or a measure is not defined for it."""
    if cell.finished is None:
        return dict.fromkeys(MEASURES, math.nan)
    matrix = cell.finished.matrix
    return matrix.summary() | {"IM": matrix.intransigence(_alone(cell, cells))}


def _alone(cell: CellResult, cells: Sequence[CellResult]) -> dict[str, float]:
    """Each task's score when it is trained alone: the diagonal of the same pair's `per_task`, the first if many."""
    for other in cells:
        if other.method == "per_task" and other.pair == cell.pair and other.finished is not None:
            return _diagonal(other.finished.matrix)
    return {}


def _diagonal(matrix: AccuracyMatrix) -> dict[str, float]:
    return {task: matrix.get(stage, task) for stage, task in enumerate(matrix.tasks, start=1)}


def _line(label: str, cells: Sequence[CellResult], measures: Sequence[Json], tests: Sequence[PairTest]) -> Line:
    views = [cell.finished for cell in cells if cell.finished is not None]
    return Line(
        label=label,
        bound=cells[0].bound,
        cells=len(cells),
        failed=len(cells) - len(views),
        measures={name: spread([values[name] for values in measures]) for name in MEASURES},
        minutes=spread([view.seconds / 60 for view in views]),
        trainable=max((view.trainable for view in views), default=0),
        megabytes=spread([view.bytes / 1e6 for view in views]),
        above=tuple(test.second for test in tests if test.claimed and test.first == label),
    )


def ranking_words(tests: Sequence[PairTest]) -> list[str]:
    """What the tests allow to say, claim by claim, and what they do not."""
    if not tests:
        return ["One method: nothing to rank."]
    claims = [
        f"{test.first} is above {test.second}: {test.difference:+.2f} AP over {test.n} pairs ({test.reason})."
        for test in tests
        if test.claimed
    ]
    head = [] if claims else ["No ranking is claimed: the order of the lines may be chance."]
    reasons: dict[str, list[str]] = {}
    for test in tests:
        if not test.claimed:
            reasons.setdefault(test.reason, []).append(f"{test.first} and {test.second}")
    left = [f"Not ranked: {'; '.join(pairs)}: {reason}." for reason, pairs in reasons.items()]
    fewest = [f"No intervals are given for fewer than {FEWEST} sequences."] if any(t.n < FEWEST for t in tests) else []
    return [*head, *claims, *left, *fewest]
