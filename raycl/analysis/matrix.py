"""The accuracy matrix and what derives from it: AP, FT, BWT, FWT and their peers.

`a[t][i]` is the score (0 to 100) on task i after stage t, both 1-based. Row 0 is the untrained model. Cells with i > t
are scores on tasks not trained yet; they serve forward transfer only. A missing cell is NaN, and a measure that needs
a missing cell is NaN: nothing is ever computed from part of the cells its formula names.

Sources: BWT and FWT from Lopez-Paz and Ranzato (2017), "Gradient Episodic Memory"; FT and intransigence from Chaudhry
et al. (2018), "Riemannian Walk"; the single-task form of FWT from Zhao et al. (2024), "SAPT".
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raycl.events import Event, Scored

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
ROUND_OFF = 1e-6
"""By how much a score may leave 0 to 100 before it is refused: a mean of floats can end a hair above 100."""


class AccuracyMatrix:
    """Scores of every task after every stage, filled while the sequence runs.

    Every measure takes the stage `t` after which it is computed, over the tasks 1..t; none = after the last stage of
    the sequence, T. A sequence that was stopped early has its measures at `last_stage`.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        """An empty matrix for `tasks`, in the order of training; the names must differ."""
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"expected one or more distinct task names, got {list(tasks)}")
        self.tasks: tuple[str, ...] = tuple(tasks)
        self.cells: np.ndarray = np.full((len(tasks) + 1, len(tasks)), np.nan)
        """Shape (T + 1, T): `cells[t, i - 1]` is a[t][i]; NaN = not measured."""

    # --- cells -------------------------------------------------------------------------------------------------------

    def set(self, stage: int, task: str, score: float) -> None:
        """Record the score of `task` (0 to 100) after `stage` (0 = untrained model), replacing an earlier one."""
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; the matrix holds {', '.join(self.tasks)}")
        if not 0 <= stage <= len(self.tasks):
            raise ValueError(f"stage {stage}: expected 0 to {len(self.tasks)}")
        if not -ROUND_OFF <= score <= 100 + ROUND_OFF:
            raise ValueError(f"score {score} of {task} after stage {stage}: expected 0 to 100")
        self.cells[stage, self.tasks.index(task)] = score

    def get(self, stage: int, task: str) -> float:
        """The score of `task` after `stage`; NaN = not measured."""
        return float(self.cells[stage, self.tasks.index(task)])

    def seen(self, stage: int) -> dict[str, float]:
        """The scores after `stage` of the tasks trained until then, in the order of training."""
        return {task: float(self.cells[stage, i]) for i, task in enumerate(self.tasks[:stage])}

    @property
    def last_stage(self) -> int:
        """The last stage after which every seen task is scored; 0 = none."""
        complete = [t for t in range(1, len(self.tasks) + 1) if np.isfinite(self.cells[t, :t]).all()]
        return max(complete, default=0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AccuracyMatrix):
            return NotImplemented
        return self.tasks == other.tasks and np.array_equal(self.cells, other.cells, equal_nan=True)

    def __repr__(self) -> str:
        return f"AccuracyMatrix({len(self.tasks)} tasks, scored up to stage {self.last_stage})"

    # --- measures ----------------------------------------------------------------------------------------------------

    def ap(self, t: int | None = None) -> float:
        """Average performance, `(1/t) sum_{i<=t} a[t][i]`; also called OP or average accuracy. 0 to 100."""
        t = self._stage(t)
        return _mean(self.cells[t, :t])

    def forgetting(self, t: int | None = None) -> float:
        """FT, `(1/(t-1)) sum_{i<t} (max_{i<=s<t} a[s][i] - a[t][i])`. -100 to 100; NaN for t = 1.

        The maximum leaves out row t, so a task that still improves counts as negative forgetting; it also leaves out
        the rows before stage i, where the task was not trained yet.
        """
        t = self._stage(t)
        return _mean([self.cells[i:t, i - 1].max() - self.cells[t, i - 1] for i in range(1, t)])

    def bwt(self, t: int | None = None, denominator: Literal["T-1", "T"] = "T-1") -> float:
        """Backward transfer, `(1/(t-1)) sum_{i<t} (a[t][i] - a[i][i])`. Negative = forgetting; NaN for t = 1.

        `denominator="T"` divides by t, as the released scoring scripts of SAPT and GainLoRA do.
        """
        t = self._stage(t)
        mean = _mean(self.cells[t, : t - 1] - self._diagonal(t)[:-1])
        return mean if denominator == "T-1" else mean * (t - 1) / t

    def fwt(self, t: int | None = None) -> float:
        """Forward transfer, `(1/(t-1)) sum_{2<=i<=t} (a[i-1][i] - a[0][i])`. NaN for t = 1.

        Needs the untrained model's row and each task's score right before its own stage.
        """
        t = self._stage(t)
        return _mean([self.cells[i - 1, i - 1] - self.cells[0, i - 1] for i in range(2, t + 1)])

    def fwt_single_task(self, single: Mapping[str, float], t: int | None = None) -> float:
        """Forward transfer against training alone, `(1/t) sum_{i<=t} (a[i][i] - s_i)`, with s_i = `single[task i]`."""
        t = self._stage(t)
        alone = np.array([single.get(task, math.nan) for task in self.tasks[:t]], dtype=float)
        return _mean(self._diagonal(t) - alone)

    def intransigence(self, single: Mapping[str, float], t: int | None = None) -> float:
        """How far learning falls short of the reference, `(1/t) sum_{i<=t} (s_i - a[i][i])`: minus `fwt_single_task`.

        The reference `single` is training alone, or, as in the paper that named it, one joint model.
        """
        return -self.fwt_single_task(single, t)

    def learning_accuracy(self, t: int | None = None) -> float:
        """How well each task was learned at its own stage, `(1/t) sum_{i<=t} a[i][i]`. 0 to 100."""
        return _mean(self._diagonal(self._stage(t)))

    def average_over_stages(self, t: int | None = None) -> float:
        """AP averaged over the stages, `(1/t) sum_{s<=t} (1/s) sum_{i<=s} a[s][i]`. 0 to 100."""
        return _mean([self.ap(s) for s in range(1, self._stage(t) + 1)])

    def summary(self, t: int | None = None) -> dict[str, float]:
        """The four measures every report shows, after stage `t`: AP, FT, BWT, FWT (NaN where undefined)."""
        return {"AP": self.ap(t), "FT": self.forgetting(t), "BWT": self.bwt(t), "FWT": self.fwt(t)}

    def curves(self) -> pd.DataFrame:
        """`summary` after every stage: index `stage` 1..T, columns AP, FT, BWT, FWT."""
        import pandas as pd

        stages = range(1, len(self.tasks) + 1)
        return pd.DataFrame([self.summary(t) for t in stages], index=pd.Index(stages, name="stage"))

    def _stage(self, t: int | None) -> int:
        t = len(self.tasks) if t is None else t
        if not 1 <= t <= len(self.tasks):
            raise ValueError(f"stage {t}: expected 1 to {len(self.tasks)}")
        return t

    def _diagonal(self, t: int) -> np.ndarray:
        """a[i][i] for i = 1..t."""
        return self.cells[np.arange(1, t + 1), np.arange(t)]

    # --- other forms -------------------------------------------------------------------------------------------------

    @classmethod
    def from_events(cls, tasks: Sequence[str], events: Iterable[Event]) -> AccuracyMatrix:
        """The matrix of the scores among `events`; other events are passed over."""
        matrix = cls(tasks)
        for event in events:
            if isinstance(event, Scored):
                matrix.set(event.stage, event.task, event.score)
        return matrix

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record: `schema`, `tasks`, and `rows` 0..T with null for a missing cell."""
        rows = [[None if math.isnan(score) else score for score in row] for row in self.cells.tolist()]
        return {"schema": SCHEMA, "tasks": list(self.tasks), "rows": rows}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AccuracyMatrix:
        """The matrix of a record made by `to_json`; raises ValueError for another schema or shape."""
        if record.get("schema") != SCHEMA:
            raise ValueError(f"accuracy matrix of schema {record.get('schema')!r}; this version reads {SCHEMA}")
        matrix = cls(record["tasks"])
        cells = np.array(record["rows"], dtype=float)
        if cells.shape != matrix.cells.shape:
            raise ValueError(
                f"accuracy matrix of shape {cells.shape}; {len(matrix.tasks)} tasks need {matrix.cells.shape}"
            )
        matrix.cells = cells
        return matrix

    def to_frame(self) -> pd.DataFrame:
        """Index `stage` 0..T, one column per task, NaN for a missing cell."""
        import pandas as pd

        return pd.DataFrame(self.cells, columns=list(self.tasks), index=pd.RangeIndex(len(self.cells), name="stage"))

    def to_csv(self) -> str:
        """`to_frame` as CSV with two decimals and empty missing cells."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["stage", *self.tasks])
        for stage, row in enumerate(self.cells.tolist()):
            table.writerow([stage, *("" if math.isnan(score) else f"{score:.2f}" for score in row)])
        return text.getvalue()


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean, NaN when there is nothing to average (so a measure over no task is undefined, not 0)."""
    return float(np.mean(values)) if len(values) else math.nan
