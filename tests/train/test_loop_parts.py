"""Parts of the loop: learning-rate schedules, the meter, the held-out split, choosing an epoch, reproducible draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycl.events import Term
from raycl.methods.common.base import Penalty, StageInfo
from raycl.train.loop import lr_factor
from raycl.train.meter import Meter
from raycl.train.passes import TokenMean
from raycl.train.selection import Best
from raycl.train.stage import StageRun, batch_shape
from raycl.train.workers import Workers

SIN = {"name": "sin_lora", "rank": 2, "alpha": 4}


def test_schedules_by_hand():
    """Ten steps, two of them warm-up: a line up to 1, then flat, or a line or half a cosine that is at 0 after the last."""
    flat = [lr_factor("constant", 0.2, step, 10) for step in range(1, 11)]
    line = [lr_factor("linear", 0.2, step, 10) for step in range(1, 11)]
    cosine = [lr_factor("cosine", 0.2, step, 10) for step in range(1, 11)]
    assert flat == [0.5, 1.0] + [1.0] * 8
    assert line == pytest.approx([0.5, 1.0] + [1 - k / 8 for k in range(8)])
    assert cosine == pytest.approx([0.5, 1.0] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 0.99), st.integers(1, 200), st.data())
def test_factors_stay_between_0_and_1(schedule, warmup, steps, data):
    """No schedule leaves [0, 1]; without warm-up a constant rate is 1 from the first step."""
    step = data.draw(st.integers(1, steps))
    assert 0 <= lr_factor(schedule, warmup, step, steps) <= 1
    assert lr_factor("constant", 0.0, step, steps) == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_stage_of_one_step_trains_at_the_full_rate(schedule):
    """No schedule makes the only step a step of nothing."""
    assert lr_factor(schedule, 0.0, 1, 1) == 1


def test_line_and_cosine_are_those_of_the_transformers_library():
    """Without warm-up the factors are what its schedulers give to the same steps."""
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for schedule, make in (("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make(optimizer, 0, 7)
        for step in range(1, 8):
            assert lr_factor(schedule, 0.0, step, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()


def test_meter_gives_means_since_the_last_reading():
    """Loss and raw terms are means over the steps; weighted and ratio follow from them; reading starts over."""
    meter = Meter(Workers())
    for loss, raw in ((1.0, 4.0), (3.0, 8.0)):
        meter.add(torch.tensor(loss), {"norm": Penalty(torch.tensor(raw), 0.5)}, 100)
    read = meter.read()
    assert read.loss == 2.0 and read.tokens_per_s > 0
    assert read.terms == {"norm": Term(raw=6.0, weighted=3.0, ratio=1.5)}
    meter.add(torch.tensor(7.0), {}, 1)
    assert meter.read().loss == 7.0


def test_best_keeps_the_weights_of_the_lowest_loss():
    """Only a lower loss replaces what is kept; restoring brings those very bits back."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    best = Best([weight])
    for value, loss in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0), (4.0, 1.0)):
        weight.data.fill_(value)
        best.offer(loss)
    best.restore()
    assert weight.item() == 2.0


def split_of(tiny, task, run_stage, **train):
    """What a stage trains on and holds out, as sets of prompts with their number."""
    seen = {}

    class Splitting(StageRun):
        pass

    original = StageRun.split

    def spy(self):
        own, held = original(self)
        seen["train"], seen["held"] = self.encoder.encode(own), held
        seen["all"] = self.encoder.encode(self.task.train)
        return own, held

    StageRun.split = spy
    try:
        seen["result"] = run_stage(tiny, SIN, [task], **train)
    finally:
        StageRun.split = original
    return seen


def test_holdout_is_deterministic_and_disjoint(tiny, toy_task, run_stage):
    """`keep: best` holds a fixed share of train out, by the seed alone; together the parts are the training set."""
    task = toy_task(1, distinct=10, repeats=1, spread=3)
    settings = {"keep": "best", "holdout": 0.3, "epochs": 2}
    first, again = (split_of(tiny, task, run_stage, **settings) for _ in range(2))
    other = split_of(tiny, task, run_stage, **settings, seed=5)
    assert len(first["held"]) == 3 and len(first["train"]) == 7
    assert (first["train"], first["held"]) == (again["train"], again["held"])
    assert first["held"] != other["held"]
    key = [(row.prompt, row.answer) for row in first["all"]]
    parts = [(row.prompt, row.answer) for row in first["train"] + first["held"]]
    assert sorted(parts) == sorted(key)
    assert not {row.prompt for row in first["train"]} & {row.prompt for row in first["held"]}
    assert first["result"].log[-1]["steps"] == 2


def test_nothing_is_held_out_when_the_last_epoch_counts(tiny, toy_task, run_stage):
    """With `keep: last` every example trains, whatever `holdout` says."""
    task = toy_task(1, distinct=10, repeats=1)
    seen = split_of(tiny, task, run_stage, keep="last", holdout=0.3, epochs=1)
    assert seen["held"] == [] and len(seen["train"]) == 10


def test_the_best_epoch_is_what_the_stage_hands_on(tiny, toy_task, run_stage, monkeypatch):
    """If the first epoch has the lowest held-out loss, the part is that of a stage of one epoch."""

    task = toy_task(1, distinct=8, repeats=1)
    settings = {"keep": "best", "holdout": 0.25}
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(TokenMean, "cross_entropy", lambda *args: next(losses))
    three = run_stage(tiny, SIN, [task], epochs=3, **settings)
    losses = iter([1.0])
    one = run_stage(tiny, SIN, [task], epochs=1, **settings)
    assert all(torch.equal(a, one.part.branch.a[path]) for path, a in three.part.branch.a.items())


def test_accumulation_does_not_change_the_step(tiny, toy_task, run_stage):
    """A global batch in one piece or in four gives the same loss and nearly the same weights, penalties included."""
    task = toy_task(1, spread=3)
    params = {"name": "o_lora", "rank": 2, "alpha": 4, "lambda2": 0.05}
    whole = run_stage(tiny, params, [task], batch_size=8, epochs=2)
    cut = run_stage(tiny, params, [task], batch_size=8, micro_batch_size=2, epochs=2)
    for first, second in zip(whole.log, cut.log, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["terms"]["norm"]["raw"] == pytest.approx(second["terms"]["norm"]["raw"], rel=1e-4)
    for path, b in whole.part.branch.b.items():
        assert torch.allclose(b, cut.part.branch.b[path], atol=1e-3)


def test_a_clipped_stage_takes_smaller_gradients(tiny, toy_task, run_stage):
    """Clipping is by the global norm: without it the first steps agree only in their loss."""
    task = toy_task(1)
    losses = {
        norm: [r["loss"] for r in run_stage(tiny, SIN | {"alpha": 64}, [task], max_grad_norm=norm).log]
        for norm in (0.0, 1e-9)
    }
    assert losses[0.0][0] == losses[1e-9][0]
    assert losses[0.0][-1] < losses[1e-9][-1]


def test_per_stage_lists_reach_the_optimizer(tiny, toy_task, run_sequence):
    """Learning rate and epochs given per stage: each stage logs its own."""
    tasks = [toy_task(number, distinct=2, repeats=4) for number in (1, 2)]
    results = run_sequence(tiny, SIN, tasks, lr=[1e-2, 1e-3], epochs=[1, 3], schedule="linear", warmup=0.0)
    assert [result.log[-1]["steps"] for result in results] == [1, 3]
    assert [record["lr"] for record in results[1].log] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_shapes_of_a_global_batch():
    """batch = micro x accumulation x workers; without a micro-batch size nothing is accumulated."""
    from raycl.methods.registry import method_params
    from raycl.sections import TrainSpec
    from raycl.spec import RunSpec

    def shape(world, **train):
        method = method_params("sin_lora")()
        return batch_shape(RunSpec(order="x", tasks=["a"], method=method, train=TrainSpec(**train)), world)

    assert (shape(2, batch_size=8).micro, shape(2, batch_size=8).accumulation) == (4, 1)
    assert shape(2, batch_size=8, micro_batch_size=2).accumulation == 2


def test_draws_depend_on_seed_stage_and_purpose_only():
    """The same purpose gives the same numbers; another seed, stage or purpose gives others; the task's name does not."""

    def draw(seed=0, stage=1, purpose="branch", task="a"):
        return torch.rand(3, generator=StageInfo(stage, 9, task, seed).generator(purpose)).tolist()

    assert draw() == draw() == draw(task="b")
    assert len({tuple(draw()), tuple(draw(seed=1)), tuple(draw(stage=2)), tuple(draw(purpose="gate"))}) == 4
