"""A memory of examples: drawn once per task, handed on as facts, mixed into the training of later stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycl.methods.common.answers import Answered
from raycl.methods.common.base import StageInfo
from raycl.methods.common.rows import Row
from raycl.state.stage_state import StageState
from raycl.tasks.sampling import draw
from raycl.tasks.task import Example, turns

Record = dict[str, Any]
"""An example as JSON."""


def budget(own: Sequence[Example], share: float) -> int:
    """How many of a task's examples a share of them is, at least one."""
    return max(1, round(share * len(own)))


def keep(own: Sequence[Example], count: int, info: StageInfo) -> list[Example]:
    """So many of a task's examples, drawn evenly over the labels; all of a task that has no more."""
    return [own[index] for index in draw([example.answers[0] for example in own], count, _seed(info))]


def best(asked: Sequence[Example], answered: Sequence[Answered], count: int, info: StageInfo) -> list[int]:
    """Indices of the `count` examples whose answers by the model are best: those that ended before those that ran into the
    limit, higher scores before lower ones, and among equals drawn evenly over the labels."""
    ranks = [(one.ended, one.score) for one in answered]
    chosen: list[int] = []
    for rank in sorted(set(ranks), reverse=True):
        equals = [index for index, one in enumerate(ranks) if one == rank]
        labels = [asked[index].answers[0] for index in equals]
        chosen += [equals[index] for index in draw(labels, count - len(chosen), _seed(info))]
    return chosen


def _seed(info: StageInfo) -> str:
    """Of the draws into a stage's memory."""
    return f"{info.seed}:{info.stage}:memory"


def records(kept: Sequence[Example]) -> list[Record]:
    """Examples as facts of a part, under the name `memory`."""
    return [
        {
            "id": example.id,
            "head": example.head,
            "body": example.body,
            "tail": example.tail,
            "answers": list(example.answers),
            **example.further,
        }
        for example in kept
    ]


def remembered(state: StageState, weight: float) -> list[Row]:
    """The rows that all parts of a state keep in memory, with their weight in the cross-entropy."""
    return [
        Row(Example(**{**kept, "answers": tuple(kept["answers"]), "chat": turns(kept.get("chat"))}), stage, weight)
        for stage, part in enumerate(state.parts, start=1)
        for kept in part.facts["memory"]
    ]
