"""The training loop by hand, around an engine that only listens: order, rates, losses, logs, checkpoints."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.errors import DivergedError
from raycl.events import Step
from raycl.methods.common.base import Penalty, StageInfo
from raycl.sections import TrainSpec
from raycl.train.batches import Encoded
from raycl.train.engine import BatchShape
from raycl.train.layout import Layout
from raycl.train.loop import TrainLoop
from raycl.train.workers import Workers

STAGE, SEED = 2, 5
ROWS = [Encoded((10 + index,), tuple([7] * (index + 1))) for index in range(5)]
"""Row i has the prompt (10 + i) and i + 1 answer tokens."""


def order_of(epoch: int, count: int = len(ROWS)) -> list[int]:
    """The data order: a permutation drawn from the first six bytes of SHA-256 of seed, stage and purpose."""
    text = f"{SEED}:{STAGE}:order {epoch}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))
    return torch.randperm(count, generator=generator).tolist()


class Listener:
    """An engine, an encoder, a method and a place for checkpoints in one; the loss of a batch is its prompts' sum."""

    def __init__(self, weight: float = 0.5, follows: bool = False) -> None:
        self.info = StageInfo(STAGE, 3, "toy", SEED)
        self.weight, self.follows_gradients = weight, follows
        self.heard: list[tuple[str, Any]] = []
        self.progress: list[float] = []
        self.logits = torch.zeros(1)
        self.grad_norm = 0.5

    def collate(self, rows: list[Encoded], device: str) -> Any:
        """A batch."""
        self.heard.append(("rows", [row.prompt[0] - 10 if row.answer else None for row in rows]))
        return SimpleNamespace(mask=torch.ones(len(rows), 3), total=sum(row.prompt[0] for row in rows if row.answer))

    def train(self, mode: bool) -> None:
        self.heard.append(("train", mode))

    def loss(self, inputs: Any, gate: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(float(inputs.total)), self.logits, self.logits

    def backward(self, loss: Tensor) -> None:
        self.heard.append(("backward", round(loss.item(), 4)))

    def step(self, rate: float) -> None:
        self.heard.append(("step", rate))

    def penalties(self, step: Any) -> dict[str, Penalty]:
        self.progress.append(step.progress)
        return {"norm": Penalty(torch.tensor(8.0), self.weight)} if self.weight else {}

    def gradients(self, *given: Any) -> Any:
        """The engine's, without arguments; the method's, with what it is shown."""
        self.heard.append(("gradients", len(given)))
        return (None, None)

    def measures(self) -> dict[str, float]:
        return {"gate": 0.25}

    def load(self, meter: Any) -> tuple[int, list[Step]]:
        return 0, []

    def save(self, step: int, log: list[Step], meter: Any) -> None:
        self.heard.append(("save", (step, [one.step for one in log])))

    def of(self, kind: str) -> list[Any]:
        """What was heard of one kind, in order."""
        return [value for name, value in self.heard if name == kind]


def ran(listener: Listener, shape: BatchShape, saves: bool = False, **train: Any) -> tuple[TrainLoop, list[Step]]:
    """All epochs of a stage."""
    log: list[Step] = []
    every: Any = listener
    loop = TrainLoop(
        TrainSpec(**train), every, every, every, shape, ROWS, every, Workers(), log.append, every if saves else None
    )
    for epoch in range(loop.epochs):
        assert loop.epoch(epoch)
    return loop, log


def test_rows_come_in_the_drawn_order_of_each_epoch() -> None:
    """Another order in every epoch, the engine in training mode at the start of each, the last batch filled up."""
    listener = Listener()
    ran(listener, BatchShape(2, 2, 1), epochs=2)
    batches = [[*order_of(epoch), None][start : start + 2] for epoch in (0, 1) for start in (0, 2, 4)]
    assert listener.of("rows") == batches
    assert order_of(0) != order_of(1)
    assert listener.of("train") == [True, True] and [listener.heard[at][0] for at in (0, 1)] == ["train", "rows"]


@pytest.mark.parametrize("how", ["like_length", "equal_tokens"])
def test_rows_share_a_step_as_is_asked_for(how: Any) -> None:
    """The steps are `Layout`'s, from the same draw of each epoch."""
    listener, shape = Listener(), BatchShape(2, 2, 1)
    ran(listener, shape, epochs=2, batches=how)
    layout = Layout(ROWS, shape, how)
    drawn = [layout.steps(StageInfo(STAGE, 3, "b", SEED).generator(f"order {epoch}")) for epoch in (0, 1)]
    filled = [
        (*step, None)[: max(2, len(step)) if how == "like_length" else len(step)] for steps in drawn for step in steps
    ]
    assert [tuple(rows) for rows in listener.of("rows")] == filled
    assert [place for steps in drawn for step in steps for place in step] != [*order_of(0), *order_of(1)]


def test_losses_are_token_means_with_weighted_penalties() -> None:
    """(Sum over the micro-batch) / (tokens of the global batch / micro-batches) + 0.5 * 8; progress counts steps from 0."""
    listener = Listener()
    ran(listener, BatchShape(4, 2, 1), epochs=1)
    order = order_of(0)
    expected = []
    for batch in (order[:4], order[4:]):
        tokens = sum(index + 1 for index in batch) / 2
        expected += [sum(10 + index for index in part) / tokens + 4 for part in (batch[:2], batch[2:])]
    assert listener.of("backward") == pytest.approx(expected, abs=1e-3)
    assert listener.progress == [0.0, 0.0, 0.5, 0.5]


def test_every_step_has_the_rate_of_its_schedule() -> None:
    """The stage's own rate times the schedule's share, the same for all micro-batches of a step."""
    listener = Listener()
    _, log = ran(listener, BatchShape(2, 1, 1), epochs=[9, 1, 9], lr=[9.0, 0.3, 9.0], schedule="linear", log_every=1)
    rates = [0.3, 0.2, 0.1]
    assert listener.of("step") == pytest.approx([rate for rate in rates for _ in range(2)])
    assert [one.lr for one in log] == pytest.approx(rates)


def test_the_method_sees_the_gradients_of_whole_batches_only() -> None:
    """After the last micro-batch's backward pass and before its step; a method that does not ask never does."""
    listener = Listener(follows=True)
    ran(listener, BatchShape(4, 2, 1), epochs=1)
    names = [name for name, _ in listener.heard if name != "rows"]
    one = ["backward", "step", "backward", "gradients", "gradients", "step"]
    assert names == ["train", *one, *one]
    assert listener.of("gradients") == [0, 1, 0, 1]
    assert (
        not (silent := Listener()).of("gradients") and ran(silent, BatchShape(4, 2, 1)) and not silent.of("gradients")
    )


def test_the_log_has_the_first_the_last_and_every_nth_step() -> None:
    """Means since the last line, terms with their weight and share, what the method measures."""
    loop, log = ran(listener := Listener(), BatchShape(1, 1, 1), epochs=1, log_every=2, lr=0.5)
    assert [one.step for one in log] == [1, 2, 4, 5] == [one.step for one in loop.logged]
    assert {(one.stage, one.steps, one.lr) for one in log} == {(STAGE, 5, 0.5)}
    losses = [value - 4 for value in listener.of("backward")]
    assert [one.loss for one in log] == pytest.approx(
        [losses[0], losses[1], (losses[2] + losses[3]) / 2, losses[4]], abs=1e-3
    )
    term = log[0].terms["norm"]
    assert (term.raw, term.weighted) == (8.0, 4.0) and term.ratio == pytest.approx(4 / losses[0], rel=1e-3)
    assert all(one.tokens_per_s > 0 and one.gauges == {"gate": 0.25, "grad_norm": 0.5} for one in log)


def test_a_checkpoint_is_left_every_nth_step_but_not_at_the_end() -> None:
    """With the log so far; the end of a stage is its part. Without a place nothing is left."""
    listener = Listener()
    ran(listener, BatchShape(1, 1, 1), saves=True, epochs=2, checkpoint_every=5, log_every=4)
    assert listener.of("save") == [(5, [1, 4])]
    assert ran(Listener(), BatchShape(1, 1, 1), epochs=1)[0].resume_at == 0


def test_a_resumed_stage_skips_what_was_done() -> None:
    """Of ten steps six were done: four are trained, on the rows that come next; the first epoch's end is not seen again."""
    listener = Listener()
    logged = [Step(STAGE, 6, 10, 0.5, 1.0, 1.0, {}, {})]
    listener.load = lambda meter: (6, logged)  # type: ignore[method-assign]
    log: list[Step] = []
    every: Any = listener
    settings = TrainSpec(epochs=2, checkpoint_every=3, log_every=9)
    loop = TrainLoop(settings, every, every, every, BatchShape(1, 1, 1), ROWS, every, Workers(), log.append, every)
    assert [loop.epoch(epoch) for epoch in (0, 1)] == [False, True]
    assert [rows[0] for rows in listener.of("rows")] == order_of(1)[1:]
    assert [one.step for one in loop.logged] == [6, 9, 10] and [one.step for one in log] == [9, 10]
    assert listener.progress == [0.6, 0.7, 0.8, 0.9]


def test_a_checkpoint_at_the_end_of_an_epoch_leaves_that_epoch_current() -> None:
    """The weights are then those of its end, so it takes part in the choice among epochs."""
    listener = Listener()
    listener.load = lambda meter: (5, [])  # type: ignore[method-assign]
    every: Any = listener
    settings = TrainSpec(epochs=2, checkpoint_every=5)
    loop = TrainLoop(
        settings, every, every, every, BatchShape(1, 1, 1), ROWS, every, Workers(), lambda step: None, every
    )
    assert loop.epoch(0) and not listener.of("rows")


def test_a_loss_that_is_no_number_ends_the_stage() -> None:
    """With stage, task, step, value and what to do."""
    listener = Listener()
    listener.loss = lambda inputs, gate: (torch.tensor(float("nan")), listener.logits, listener.logits)  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=r"stage 2 \(toy\), step 1: the loss is nan.*train\.lr \(now 0\.5\)"):
        ran(listener, BatchShape(2, 2, 1), lr=0.5)
