"""What a sequence answered and what it forgot: against the stored predictions, scored by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycl.sequence.answers import forgotten, given
from raycl.sequence.plan import Cell
from raycl.tasks.task import Example

RIGHT = ("oak", "elm", "fir", "yew")


class Kept:
    """A store of predictions: key -> the words that were answered."""

    def __init__(self, rows: dict[str, tuple[str, ...]]) -> None:
        self.rows = rows

    def has_scores(self, key: str) -> bool:
        return key in self.rows

    def read_scores(self, key: str) -> dict[str, float]:
        hits = [word == right for word, right in zip(self.rows[key], RIGHT, strict=True)]
        return {"score": 100 * sum(hits) / len(hits), "seconds": 1.0}

    def read_predictions(self, key: str) -> list[dict[str, Any]]:
        return [{"prediction": word} for word in self.rows[key]]


def job(rows: dict[str, tuple[str, ...]]) -> Any:
    """A job of three stages over tasks a, b and c of four examples; `rows` has `<task><stage>` as keys."""
    cells = [
        Cell(stage, task, f"{task}{stage}", True, ())
        for stage in (1, 2, 3)
        for place, task in enumerate("abc", start=1)
        if place <= stage
    ]
    stages = [SimpleNamespace(row=row) for row in (1, 2, 3)]
    plan = SimpleNamespace(cells=cells, stages=stages, cells_of=lambda row: [one for one in cells if one.stage == row])
    test = [Example(str(place), "", f"tree {place}?", "", (right,)) for place, right in enumerate(RIGHT)]
    tasks = [SimpleNamespace(name=name, test=test, metric="exact_match", code={}) for name in "abc"]
    return SimpleNamespace(
        plan=plan, store=Kept(rows), tasks=tasks, task=lambda name: next(one for one in tasks if one.name == name)
    )


ALL = {
    "a1": ("oak", "elm", "x", "x"),
    "a2": ("oak", "elm", "fir", "x"),  # a's best row
    "a3": ("oak", "x", "y", "yew"),  # lost elm and fir since then, and found yew: 75 -> 50
    "b2": RIGHT,
    "b3": ("x", "x", "x", "yew"),  # 100 -> 25: lost most
    "c3": RIGHT,
}


def test_the_tasks_that_lost_most_come_first_from_their_best_row() -> None:
    """b lost 75 points since stage 2, a 25 since stage 2; what was found meanwhile is no loss; c has nothing to lose."""
    found = [
        (one.task, one.best, one.before.number, one.before.prediction, one.after.prediction)
        for one in forgotten(job(ALL))
    ]
    assert found == [
        ("b", 2, 1, "oak", "x"),
        ("b", 2, 2, "elm", "x"),
        ("b", 2, 3, "fir", "x"),
        ("a", 2, 2, "elm", "x"),
        ("a", 2, 3, "fir", "y"),
    ]
    assert len(list(forgotten(job(ALL), examples=1))) == 2


@pytest.mark.parametrize("without", ["b3", "b2"])
def test_a_row_that_is_not_scored_loses_nothing(without: str) -> None:
    """A sequence that was stopped has cells that the store lacks."""
    rows = {key: words for key, words in ALL.items() if key != without}
    assert {one.task for one in forgotten(job(rows))} == {"a"}


def test_answers_come_with_prompt_and_score() -> None:
    """In the order of the test split; a cell that the plan lacks is a KeyError."""
    rows = given(job(ALL), 3, "a")
    assert [(one.number, one.prompt, one.accepted, one.prediction, one.score, one.wrong) for one in rows[:2]] == [
        (1, "tree 0?", ("oak",), "oak", 100.0, False),
        (2, "tree 1?", ("elm",), "x", 0.0, True),
    ]
    with pytest.raises(KeyError, match="b after stage 1"):
        given(job(ALL), 1, "b")


def test_a_routed_answer_names_whose_weights_gave_it(tmp_path: Path) -> None:
    """And none where the base model answered alone."""
    one = job(ALL)
    ways = [{"task": "a", "known": True}, {"task": "a", "known": False}] * 2
    rows = [{"prediction": word, "route": way} for word, way in zip(RIGHT, ways, strict=True)]
    one.store.read_predictions = lambda key: rows
    assert [row.route for row in given(one, 3, "c")] == ["a", None, "a", None]
