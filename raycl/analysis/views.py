"""What a report shows of a sequence and of a sweep's trial: plain data, read from wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import Routing, Step, work_seconds


@dataclass(frozen=True)
class StageView:
    """One stage that is stored."""

    stage: int
    task: str
    key: str
    steps: list[Step]
    """The records of its training: loss, terms, gauges."""
    gauges: dict[str, float]
    """The method's measures at the end of the stage."""
    seconds: dict[str, float]
    """Duration by kind of work (train, pass, ..., start_up), wherever and whenever the stage was made."""
    trainable: int
    """Parameters that trained."""
    bytes: int
    """What the stage added to the store."""


@dataclass(frozen=True)
class SequenceView:
    """One sequence, as far as it went."""

    label: str
    """Its name in tables and charts; differs from every other sequence's in a report."""
    line: str
    """What its lines are called in charts: the method with its inner one, or the label of a variant. Sequences of one line
    share a colour."""
    order: str
    """The order as a heading."""
    seed: int
    params: Mapping[str, str]
    """The spec as `outer.inner` -> text."""
    matrix: AccuracyMatrix
    stages: list[StageView] = field(default_factory=list)
    status: str = "finished"
    """`finished`, or in words how far it went."""
    scoring: Mapping[int, float] = field(default_factory=dict)
    """Row of the matrix -> seconds in which its cells were scored, wherever and whenever that was."""
    angles: np.ndarray | None = None
    """Mean principal angle in degrees between the branches of two stages, (T, T); none = the method has no branches."""

    @property
    def last(self) -> int:
        """The last stage after which every seen task is scored; 0 = none."""
        return self.matrix.last_stage

    @property
    def ap(self) -> float:
        """AP after the last scored stage; NaN before the first."""
        return self.matrix.ap(self.last) if self.last else float("nan")

    @property
    def seconds(self) -> float:
        """What it costs: seconds of training, data passes and scoring, also of what it found in the store.

        Start-up, builds of ops, waiting for other runs and reading the store are no part of it.
        """
        return sum(work_seconds(stage.seconds) for stage in self.stages) + sum(self.scoring.values())

    @property
    def trainable(self) -> int:
        """Trainable parameters of the stage that had most."""
        return max((stage.trainable for stage in self.stages), default=0)

    @property
    def bytes(self) -> int:
        """Size of its stages in the store."""
        return sum(stage.bytes for stage in self.stages)

    @property
    def keys(self) -> list[str]:
        """The keys of its stored stages."""
        return [stage.key for stage in self.stages]


@dataclass(frozen=True)
class Given:
    """One answer of a cell of the accuracy matrix."""

    number: int
    """1-based place in the test split."""
    prompt: str
    """The whole prompt, uncut."""
    accepted: tuple[str, ...]
    prediction: str
    score: float
    """0 to 100, by the task's first metric."""
    route: str | None = None
    """The task whose weights answered, where the method decides that input by input."""

    @property
    def wrong(self) -> bool:
        """Whether anything is missing from a full score."""
        return self.score < 100


@dataclass(frozen=True)
class Forgotten:
    """One test example that was answered better when its task stood best than at the end."""

    task: str
    best: int
    """The stage after which the task's score was highest."""
    before: Given
    after: Given


@dataclass(frozen=True)
class RunView:
    """One sequence with all that its page shows."""

    sequence: SequenceView
    routing: Routing | None
    """How the last row's inputs were routed; none where the method does not."""
    forgotten: tuple[Forgotten, ...]
    """The examples that lost most, worst tasks first."""


@dataclass(frozen=True)
class TrialView:
    """One trial of a sweep."""

    label: str
    params: Mapping[str, float | int | str | bool | None]
    """The searched settings and their values."""
    ap: float | None
    """AP after the last stage it finished; none = no stage finished."""
    stages: int = 0
    """Stages it finished."""
    status: str = "finished"
    """`finished`, or why it ended early."""
