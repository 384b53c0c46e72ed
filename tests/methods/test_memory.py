"""The memory of real examples: how many are kept, which, and what later stages get back."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from raycl.methods.common.base import StageInfo
from raycl.methods.common.memory import keep, records, remembered
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
    assert len(keep(rows(*"aaaaabbbbb"), share, INFO)) == kept


def test_labels_are_kept_in_equal_numbers() -> None:
    """A label with a tenth of the examples has a third of the memory, and the first answer is the label."""
    kept = keep(rows(*"aaaaaaaaaabbbbbbbbbbccc"), 9 / 23, INFO)
    assert Counter(example.answers[0] for example in kept) == {"a": 3, "b": 3, "c": 3}


def test_the_draw_is_that_of_run_stage_and_purpose() -> None:
    """Another seed or stage keeps others."""
    own = rows(*"aaaaaaaaaabbbbbbbbbb")
    assert keep(own, 0.4, INFO) == [own[index] for index in draw([*"a" * 10, *"b" * 10], 8, "5:2:memory")]
    assert (
        keep(own, 0.4, INFO) != keep(own, 0.4, StageInfo(1, 3, "toy", 5)) != keep(own, 0.4, StageInfo(1, 3, "toy", 0))
    )


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
