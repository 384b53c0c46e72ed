"""AP, FT, BWT, FWT against values worked out by hand, and the properties that hold for every matrix."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import Scored, StageStart

CHECK = [("a", 80.0, 70.0, 75.0), ("b", None, 60.0, 50.0), ("c", None, None, 90.0)]


@pytest.fixture
def check() -> AccuracyMatrix:
    """Rows (80,-,-), (70,60,-), (75,50,90)."""
    matrix = AccuracyMatrix(["a", "b", "c"])
    for task, *column in CHECK:
        for stage, score in enumerate(column, start=1):
            if score is not None:
                matrix.set(stage, task, score)
    return matrix


@pytest.fixture
def forward(check: AccuracyMatrix) -> AccuracyMatrix:
    """The check matrix with an untrained row (10,20,30) and each task's score right before its stage."""
    for task, score in zip("abc", (10.0, 20.0, 30.0), strict=True):
        check.set(0, task, score)
    check.set(1, "b", 26.0)
    check.set(2, "c", 32.0)
    return check


def test_check_matrix(check: AccuracyMatrix) -> None:
    assert check.ap() == pytest.approx(215 / 3)
    assert check.forgetting() == 7.5
    assert check.bwt() == -7.5
    assert check.bwt(denominator="T") == -5.0
    assert check.learning_accuracy() == pytest.approx(230 / 3)
    assert check.average_over_stages() == pytest.approx((80 + 65 + 215 / 3) / 3)
    assert math.isnan(check.fwt())


def test_after_an_earlier_stage(forward: AccuracyMatrix) -> None:
    assert forward.summary(2) == {"AP": 65.0, "FT": 10.0, "BWT": -10.0, "FWT": 6.0}
    assert forward.summary(1)["AP"] == 80.0
    assert forward.learning_accuracy(2) == 70.0
    assert list(forward.curves()["AP"].round(2)) == [80.0, 65.0, 71.67]


def test_forward_transfer(forward: AccuracyMatrix) -> None:
    assert forward.fwt() == ((26 - 20) + (32 - 30)) / 2
    single = {"a": 82.0, "b": 58.0, "c": 87.0}
    assert forward.fwt_single_task(single) == pytest.approx((-2 + 2 + 3) / 3)
    assert forward.intransigence(single) == -forward.fwt_single_task(single)
    assert math.isnan(forward.fwt_single_task({"a": 82.0}))


def test_forgetting_counts_only_rows_from_the_task_s_own_stage_on(check: AccuracyMatrix) -> None:
    check.set(0, "b", 99.0)
    check.set(1, "b", 99.0)
    assert check.forgetting() == 7.5


def test_forgetting_is_negative_when_a_task_still_improves() -> None:
    matrix = AccuracyMatrix(["a", "b"])
    matrix.set(1, "a", 50.0)
    matrix.set(2, "a", 60.0)
    matrix.set(2, "b", 70.0)
    assert (matrix.forgetting(), matrix.bwt()) == (-10.0, 10.0)


def test_one_task_leaves_forgetting_and_transfer_undefined() -> None:
    matrix = AccuracyMatrix(["a"])
    matrix.set(0, "a", 10.0)
    matrix.set(1, "a", 50.0)
    assert matrix.ap() == 50.0
    assert all(
        math.isnan(value) for value in (matrix.forgetting(), matrix.bwt(), matrix.bwt(denominator="T"), matrix.fwt())
    )


def test_a_missing_cell_makes_a_measure_undefined(check: AccuracyMatrix) -> None:
    check.cells[2, 0] = np.nan
    assert math.isnan(check.forgetting())
    assert math.isnan(check.ap(2))
    assert check.ap() == pytest.approx(215 / 3)


def test_last_stage_grows_with_complete_rows() -> None:
    matrix = AccuracyMatrix(["a", "b"])
    assert matrix.last_stage == 0
    matrix.set(1, "a", 1.0)
    matrix.set(2, "a", 1.0)
    assert matrix.last_stage == 1
    matrix.set(2, "b", 1.0)
    assert matrix.last_stage == 2


def test_from_events_reads_scores_and_passes_over_the_rest() -> None:
    events = [
        StageStart(1, "a", 3),
        Scored(0, "b", "exact_match", 5.0, 10, 0.1, False),
        Scored(1, "a", "exact_match", 50.0, 10, 0.1, True),
    ]
    matrix = AccuracyMatrix.from_events(["a", "b"], events)
    assert (matrix.get(0, "b"), matrix.get(1, "a")) == (5.0, 50.0)
    assert np.isnan(matrix.cells).sum() == 4
    assert matrix.seen(1) == {"a": 50.0}


@pytest.mark.parametrize(
    ("stage", "task", "score"), [(1, "x", 1.0), (4, "a", 1.0), (-1, "a", 1.0), (1, "a", 101.0), (1, "a", math.nan)]
)
def test_impossible_cells_are_refused(check: AccuracyMatrix, stage: int, task: str, score: float) -> None:
    with pytest.raises(ValueError, match=r"unknown task|expected"):
        check.set(stage, task, score)


def test_impossible_matrices_are_refused(check: AccuracyMatrix) -> None:
    for tasks in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="distinct"):
            AccuracyMatrix(tasks)
    with pytest.raises(ValueError, match="expected 1 to 3"):
        check.ap(4)
    with pytest.raises(ValueError, match="schema"):
        AccuracyMatrix.from_json({**check.to_json(), "schema": 2})
    with pytest.raises(ValueError, match="shape"):
        AccuracyMatrix.from_json({**check.to_json(), "tasks": ["a", "b"]})


def test_csv_and_frame(check: AccuracyMatrix) -> None:
    assert check.to_csv() == "stage,a,b,c\n0,,,\n1,80.00,,\n2,70.00,60.00,\n3,75.00,50.00,90.00\n"
    assert check.to_frame().loc[3, "c"] == 90.0


SCORES = st.floats(0, 100, allow_nan=False)


@st.composite
def full_matrices(draw: st.DrawFn) -> AccuracyMatrix:
    """Matrices of 2 to 6 tasks with every cell measured."""
    count = draw(st.integers(2, 6))
    matrix = AccuracyMatrix([f"task{i}" for i in range(count)])
    rows = draw(st.lists(st.lists(SCORES, min_size=count, max_size=count), min_size=count + 1, max_size=count + 1))
    matrix.cells = np.array(rows)
    return matrix


@given(full_matrices())
def test_ranges_and_order_of_the_measures(matrix: AccuracyMatrix) -> None:
    for stage in range(2, len(matrix.tasks) + 1):
        values = matrix.summary(stage)
        assert 0 <= values["AP"] <= 100 + 1e-9
        assert all(-100 <= values[name] <= 100 for name in ("FT", "BWT", "FWT"))
        assert values["BWT"] >= -values["FT"] - 1e-9
        assert abs(matrix.bwt(stage, denominator="T")) <= abs(values["BWT"])


@given(full_matrices())
def test_json_round_trip(matrix: AccuracyMatrix) -> None:
    matrix.cells[0, 0] = np.nan
    assert AccuracyMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


@given(full_matrices(), st.floats(0, 1))
def test_rows_after_a_stage_do_not_change_its_measures(matrix: AccuracyMatrix, share: float) -> None:
    stage = 1 + int(share * (len(matrix.tasks) - 1))
    before = matrix.summary(stage)
    matrix.cells[stage + 1 :] = np.nan
    assert matrix.summary(stage) == pytest.approx(before, nan_ok=True)


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_scores_that_never_move_mean_no_forgetting_and_no_transfer(scores: list[float]) -> None:
    matrix = AccuracyMatrix([f"task{i}" for i in range(len(scores))])
    matrix.cells[:] = scores
    assert (matrix.forgetting(), matrix.bwt(), matrix.fwt()) == (0.0, 0.0, 0.0)
    assert matrix.ap() == pytest.approx(matrix.learning_accuracy())


def test_nothing_but_numpy_and_pandas_is_imported() -> None:
    heavy = ("mlflow", "torch", "ray", "matplotlib")
    code = f"import sys, raycl.analysis.matrix; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
