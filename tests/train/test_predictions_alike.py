"""Answers do not depend on how they are shared out: evaluation batches of 1, 8, 64 and 1, 2, 4 workers, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from raycl.files import Json
from raycl.models.load import LoadedModel
from raycl.state.stage_state import StageState
from raycl.tasks.task import Task
from raycl.testing.toys import StageResult
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
from raycl.train.workers import Workers

METHODS: dict[str, dict[str, Any]] = {
    "one branch": {"name": "seq_ft"},
    "gates": {"name": "gain_lora", "over": "o_lora", "rank": 2, "gate_hidden": [8]},
    "routes": {"name": "route_lora", "rank": 2},
    "adapted": {"name": "mbpa", "rank": 2, "share": 1.0, "neighbours": 2, "local_steps": 1},
}
BATCHES, WORLDS = (1, 8, 64), (1, 2, 4)
MANY = 40
"""Prompts: more than a batch, and no multiple of batches and workers but the smallest."""


class Kept(Exception):
    """A worker's share is kept; the rest is the last one's."""


@dataclass(frozen=True)
class OneByOne(Workers):
    """One of several workers that run one after another: each leaves its share and ends, the last one gets all of them."""

    shares: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        """The shares in rank order, for the last worker."""
        self.shares.append(value)
        if len(self.shares) < self.world:
            raise Kept
        return self.shares


def answers(
    model: LoadedModel, method: Any, task: Task, batch: int, world: int, tokens: int | None = None
) -> list[Json]:
    """The predictions of a task's test split, made by so many workers in batches of that size, or of so many tokens."""
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    shares: list[Any] = []
    for rank in range(world):
        decoder = Decoder(model, method, encoder, batch, OneByOne(rank, world, "cpu", shares), tokens)
        with suppress(Kept):
            return decoder.score(task).predictions
    raise AssertionError("the last worker gets all shares")


def said(row: Json) -> tuple[str, str, Any]:
    """What was asked, what was answered, and whose weights answered."""
    return row["id"], row["prediction"], row.get("route", {}).get("task")


def sure(row: Json) -> float:
    """How sure the route was: a figure, whose last bits depend on what else is in a batch."""
    return row.get("route", {}).get("probability", 1.0)


@pytest.fixture
def served(
    run_sequence: Callable[..., list[StageResult]], toy_task: Callable[..., Task]
) -> Callable[[LoadedModel, dict[str, Any]], tuple[StageState, Any, Sequence[Task]]]:
    """Trains two toy tasks with prompts of many lengths; the state, the method of its last stage, the tasks."""

    def train(model: LoadedModel, method: dict[str, Any]) -> tuple[StageState, Any, Sequence[Task]]:
        tests = [toy_task(number, distinct=MANY, repeats=1, spread=9).test for number in (1, 2)]
        tasks = [replace(toy_task(number), test=test) for number, test in zip((1, 2), tests, strict=True)]
        last = run_sequence(model, method, tasks, epochs=20)[-1]
        return last.state, last.method, tasks

    return train


@pytest.mark.parametrize("name", METHODS)
def test_answers_are_the_same_however_they_are_shared_out(
    served: Callable[..., tuple[StageState, Any, Sequence[Task]]], tiny: LoadedModel, name: str
) -> None:
    """Nine ways, and by tokens: every prediction and every route, text by text; and the answers are not all one word."""
    state, method, tasks = served(tiny, METHODS[name])
    method.serve(tiny.backbone, state)
    try:
        texts = set()
        for task in tasks:
            found = {(batch, world): answers(tiny, method, task, batch, world) for batch in BATCHES for world in WORLDS}
            found[0, 1] = answers(tiny, method, task, 1, 1, tokens=40)
            for rows in found.values():
                assert [said(row) for row in rows] == [said(row) for row in found[1, 1]]
                assert [sure(row) for row in rows] == pytest.approx([sure(row) for row in found[1, 1]], abs=1e-4)
            assert [row["id"] for row in found[1, 1]] == [example.id for example in task.test]
            texts |= {row["prediction"] for row in found[1, 1]}
        assert len(texts) > 1
    finally:
        method.remove()
