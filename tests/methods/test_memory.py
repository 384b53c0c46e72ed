"""The memory of real examples: how many are kept, which, and what later stages get back."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from raycl.methods.common.answers import Answered
from raycl.methods.common.base import StageInfo
from raycl.methods.common.memory import best, budget, keep, records, remembered
from raycl.state.stage_state import StagePart, StageState
from raycl.tasks.sampling import draw
from raycl.tasks.task import Example

INFO = StageInfo(2, 3, "toy", 5)


def rows(*labels: str) -> list[Example]:
    """One example per label."""
    return [Example(f"{i}", f"head {i}", f"body {i}", f"tail {i}", (one, "x")) for i, one in enumerate(labels)]


@pytest.mark.parametrize(("share", "kept"), [(0.02, 1), (0.14, 1), (0.16, 2), (0.25, 2), (0.35, 4), (1.0, 10)])
def test_a_share_is_rounded_and_at_least_one(share: float, kept: int) -> None:
    """Of ten: 0.2 and 1.4 are 1, 1.6 and 2.5 are 2 (to even), 3.5 is 4."""
    assert budget(rows(*"aaaaabbbbb"), share) == kept == len(keep(rows(*"aaaaabbbbb"), kept, INFO))


def test_labels_are_kept_in_equal_numbers() -> None:
    """A label with a tenth of the examples has a third of the memory, and the first answer is the label."""
    kept = keep(rows(*"aaaaaaaaaabbbbbbbbbbccc"), 9, INFO)
    assert Counter(example.answers[0] for example in kept) == {"a": 3, "b": 3, "c": 3}


def test_the_draw_is_that_of_run_stage_and_purpose() -> None:
    """Another seed or stage keeps others."""
    own = rows(*"aaaaaaaaaabbbbbbbbbb")
    assert keep(own, 8, INFO) == [own[index] for index in draw([*"a" * 10, *"b" * 10], 8, "5:2:memory")]
    assert keep(own, 8, INFO) != keep(own, 8, StageInfo(1, 3, "toy", 5)) != keep(own, 8, StageInfo(1, 3, "toy", 0))


def test_the_best_answers_are_kept_within_the_budget() -> None:
    """Ended ones first, then by score; among equals every label has its turn; no more than there are."""
    asked = rows(*"aaaabbbb")
    scores = [0.0, 100.0, 50.0, 100.0, 100.0, 100.0, 100.0, 0.0]
    answered = [Answered("x", score, index != 1) for index, score in enumerate(scores)]
    assert best(asked, answered, 5, INFO)[-1] == 2 and set(best(asked, answered, 5, INFO)) == {3, 4, 5, 6, 2}
    assert set(best(asked, answered, 7, INFO)) == {3, 4, 5, 6, 2, 0, 7} and best(asked, answered, 8, INFO)[-1] == 1
    assert 3 in best(asked, answered, 2, INFO), "the one of its label among four equals"
    assert len(best(asked, answered, 1, INFO)) == 1 and sorted(best(asked, answered, 99, INFO)) == list(range(8))


def test_what_is_remembered_is_what_was_kept() -> None:
    """Through JSON and back, with the stage each example is from and the weight of replayed rows."""
    parts = []
    for number in (1, 2):
        facts = json.loads(json.dumps({"memory": records(rows("a", "b")[:number])}))
        parts.append(StagePart(f"task {number}", facts=facts))
    back = remembered(StageState(tuple(parts)), 0.5)
    assert [row.example for row in back] == [rows("a")[0], *rows("a", "b")]
    assert [(row.stage, row.weight) for row in back] == [(1, 0.5), (2, 0.5), (2, 0.5)]
    assert records(rows("a")) == [
        {"id": "0", "head": "head 0", "body": "body 0", "tail": "tail 0", "answers": ["a", "x"]}
    ]
