"""LwF: the divergence by hand, the teacher, and what the penalty does."""

from __future__ import annotations

import math

import pytest
import torch

from raycl.methods.common.base import Step
from raycl.methods.common.teacher import as_teacher, distillation
from raycl.methods.lwf import without_current
from raycl.testing.probes import answer_logits, batch_of, largest_difference, make_method, same_part, served_logits
from tests.kit.cases import CASES

PARAMS = CASES["lwf"].params | {"dropout": 0.0}


def test_the_divergence_by_hand():
    """T = 2, teacher logits (2 ln 3, 0) -> p = (3/4, 1/4), student (0, 0) -> (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    teacher = torch.tensor([[2 * math.log(3), 0.0], [1.0, 1.0]])
    student = torch.zeros(2, 2, requires_grad=True)
    value = distillation(teacher, student, 2.0)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    value.backward()
    # d KL / d student = (p_student - p_teacher) / T
    assert torch.allclose(student.grad, torch.tensor([[-0.125, 0.125], [0.0, 0.0]]), atol=1e-6)


def test_the_order_of_the_arguments_matters():
    """KL(teacher || student) and not the reverse: a student that misses what the teacher says pays more."""
    sharp, flat = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = torch.softmax(sharp / 2, -1)[0]
    forward = sum(x * math.log(x / 0.5) for x in p.tolist())
    assert distillation(sharp, flat, 2.0).item() == pytest.approx(forward, rel=1e-5)
    assert distillation(flat, sharp, 2.0).item() != pytest.approx(forward, rel=1e-2)


def test_the_mixer_leaves_the_newest_branch_out():
    """Weights 1, 1, 0 with two frozen branches; 0 alone with none."""
    layer = type("Layer", (), {"frozen_ranks": (4, 2)})
    assert without_current(layer, None, torch.zeros(1, 3, 4)).tolist() == [[[1.0, 1.0, 0.0]]]
    layer.frozen_ranks = ()
    assert without_current(layer, None, torch.zeros(1, 3, 4)).tolist() == [[[0.0]]]


def test_dropout_rests_and_comes_back():
    """The modes are as they were, even after an error."""
    model = torch.nn.Sequential(torch.nn.Dropout(0.5)).train()
    with pytest.raises(ZeroDivisionError), as_teacher(model):
        assert not model[0].training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert model.training and model[0].training and torch.is_grad_enabled()


def test_no_penalty_at_stage_1_and_none_without_weight(tiny):
    """Stage 1 has nothing to keep; weight 0 runs no teacher."""
    for stage, weight in ((1, 1.0), (2, 0.0)):
        method = make_method(PARAMS | {"weight": weight}, stage)
        assert method.penalties(None) == {}


def test_the_divergence_starts_at_0_and_grows(tiny, toy_tasks, run_sequence):
    """B_t = 0: teacher and student are one at the first step, but for round-off; later the new branch is felt."""
    result = run_sequence(tiny, PARAMS, toy_tasks[:2])[1]
    terms = [record["terms"]["distillation"] for record in result.log]
    assert terms[0]["raw"] == pytest.approx(0, abs=1e-6) and terms[-1]["raw"] > 1e-4
    assert terms[-1]["weighted"] == pytest.approx(terms[-1]["raw"])


def test_the_teacher_is_the_model_before_the_stage(tiny, toy_tasks, run_sequence):
    """With a trained third branch on the model, the teacher's logits are those of the served state of two parts."""
    results = run_sequence(tiny, PARAMS, toy_tasks)
    before = served_logits(tiny, PARAMS, results[1].state, toy_tasks[0].test)
    inputs = batch_of(tiny, toy_tasks[0].test)
    method = make_method(PARAMS, 3)
    method.serve(tiny.backbone, results[2].state)
    try:
        now = answer_logits(tiny, method, inputs)
        method.branches.mix_by(without_current)
        teacher = answer_logits(tiny, method, inputs)
        assert largest_difference(teacher, before) <= 1e-4 and largest_difference(now, before) > 0.1
    finally:
        method.remove()


def test_only_answer_tokens_count_and_the_mean_is_the_global_batch(tiny, toy_tasks, run_sequence):
    """The term is T^2 / tokens times the sum of KL over answer tokens; a filler row adds nothing."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    method = make_method(PARAMS, 2)
    method.install(tiny.backbone, state)
    try:
        inputs = batch_of(tiny, toy_tasks[1].train[:2])
        labels = torch.tensor([[5, -100], [-100, -100]])
        student, teacher = torch.randn(2, 2, 7), torch.randn(2, 2, 7)
        step = Step(inputs, student, labels, torch.tensor(0.0), 0.0, lambda _: teacher, list, tokens=4.0)
        expected = 4 * distillation(teacher[0, :1], student[0, :1], 2.0) / 4
        assert method.penalties(step)["distillation"].raw.item() == pytest.approx(expected.item(), rel=1e-6)
        assert all(layer.mixer is None for layer in method.branches.layers.values())
    finally:
        method.remove()


def test_micro_batches_do_not_change_the_penalty(tiny, toy_tasks, run_sequence, run_stage):
    """One micro-batch of 8 or four of 2: the same logged term, up to rounding."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    logs = [run_stage(tiny, PARAMS, toy_tasks, state, micro_batch_size=size).log for size in (8, 2)]
    for one, four in zip(*logs, strict=True):
        assert one["terms"]["distillation"]["raw"] == pytest.approx(
            four["terms"]["distillation"]["raw"], rel=1e-3, abs=1e-6
        )


def test_weight_0_is_inc_lora_and_a_large_weight_holds_the_model(tiny, toy_tasks, run_sequence):
    """Without its weight it trains IncLoRA's branches bit for bit; with a large one the new task hardly moves the model."""
    dropped = CASES["lwf"].params
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks[:2])
    none = run_sequence(tiny, dropped | {"weight": 0.0}, toy_tasks[:2])
    assert all(same_part(ours.part, theirs.part) for ours, theirs in zip(none, plain, strict=True))
    moved = {}
    for weight in (0.0, 100.0):
        results = run_sequence(tiny, PARAMS | {"weight": weight}, toy_tasks[:2])
        before, after = (served_logits(tiny, PARAMS, r.state, toy_tasks[1].test) for r in results)
        moved[weight] = largest_difference(before, after)
    assert moved[100.0] < moved[0.0]
