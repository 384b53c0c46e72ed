"""A memory of real examples: drawn once per task, handed on as facts, mixed into the training of later stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycl.methods.common.base import StageInfo
from raycl.methods.common.rows import Row
from raycl.state.stage_state import StageState
from raycl.tasks.sampling import draw
from raycl.tasks.task import Example, turns

Record = dict[str, Any]
"""An example as JSON."""


def keep(own: Sequence[Example], share: float, info: StageInfo) -> list[Example]:
    """A share of a task's examples, at least one, drawn evenly over the labels."""
    count = max(1, round(share * len(own)))
    seed = f"{info.seed}:{info.stage}:memory"
    return [own[index] for index in draw([example.answers[0] for example in own], count, seed)]


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
