"""Entropy-adaptive cross-entropy and the divergence from the base model: by hand, their gradients, and in whole stages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Step
from raycl.methods.common.teacher import divergence, without
from raycl.sections import TrainSpec
from raycl.testing.probes import encoder_of, probe_logits, same_part
from raycl.testing.ranks import (
    Job,
    Killed,
    Memory,
    assert_a_pair_does_what_one_does,
    job_of,
    make_odd_tasks,
    run_one,
)
from raycl.testing.toys import make_toy_task, run_sequence_in_memory, run_stage_in_memory
from raycl.train.losses import base_term, gate_of, normalised_entropy
from tests.kit.cases import CASES

BOTH: dict[str, Any] = {"loss": "eaft", "loss_top_k": 5, "base_kl": 0.5}
TASKS = [make_toy_task(number, spread=3) for number in (1, 2)]


def test_the_entropy_by_hand() -> None:
    """K = 2 of (ln 3, 0, -9): q = (3/4, 1/4), H = (3/4 ln 4/3 + 1/4 ln 4) / ln 2; two that are alike give 1, one alone 0."""
    logits = torch.tensor([[math.log(3), 0.0, -9.0], [1.0, -5.0, 1.0], [200.0, 0.0, 0.0], [0.0, -math.inf, -math.inf]])
    by_hand = (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    assert normalised_entropy(logits, 2).tolist() == pytest.approx([by_hand, 1.0, 0.0, 0.0], abs=1e-6)
    assert normalised_entropy(torch.zeros(2, 3, 3), 20).tolist() == [[pytest.approx(1.0)] * 3] * 2
    assert normalised_entropy(torch.zeros(1, 3, dtype=torch.bfloat16), 20).dtype == torch.float32


def test_the_gate_is_there_only_where_it_is_asked_for() -> None:
    """With K of the settings, 20 by default."""
    assert gate_of(TrainSpec()) is None and gate_of(TrainSpec(loss_top_k=3)) is None
    logits = torch.randn(4, 30)
    for settings, top_k in ((TrainSpec(loss="eaft"), 20), (TrainSpec(loss="eaft", loss_top_k=3), 3)):
        gate = gate_of(settings)
        assert gate is not None and torch.equal(gate(logits), normalised_entropy(logits, top_k))


def test_the_entropy_weighs_gradients_and_has_none() -> None:
    """d(H CE)/dz = H (p - y), in fp64: a confident conflict pulls less than the same cross-entropy would."""
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(6)
    weights = normalised_entropy(logits, 4)
    (F.cross_entropy(logits, targets, reduction="none") * weights).sum().backward()
    expected = weights[:, None] * (logits.detach().softmax(-1) - F.one_hot(targets, 9))
    assert not weights.requires_grad and weights.dtype == torch.float64
    assert torch.allclose(found(logits), expected, atol=1e-14)


def found(tensor: Tensor) -> Tensor:
    """The gradient of a tensor."""
    assert tensor.grad is not None
    return tensor.grad


def test_the_masked_divergence_by_hand() -> None:
    """Base (1, 2, 3)/6 without the first token is (2, 3)/5, a flat model (1, 1)/2: 2/5 ln 4/5 + 3/5 ln 6/5, whatever the
    token's own logits are."""
    targets = torch.tensor([0, 0])
    base = torch.tensor([[0.0, math.log(2), math.log(3)], [50.0, math.log(2), math.log(3)]])
    now = torch.tensor([[0.0, 1.0, 1.0], [-50.0, 1.0, 1.0]])
    expected = 0.4 * math.log(0.8) + 0.6 * math.log(1.2)
    assert divergence(without(targets, base), without(targets, now)).tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert without(targets, base).softmax(-1)[0].tolist() == pytest.approx([0.0, 0.4, 0.6])
    same = without(torch.tensor([2, 1]), base)
    assert divergence(same, same).tolist() == [0.0, 0.0]


def test_the_gradient_of_the_masked_divergence() -> None:
    """In fp64 against differences, and in closed form: p' - p0' on all other tokens, exactly 0 on the answer's."""
    targets = torch.tensor([1, 4, 0])
    base, now = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    now.requires_grad_()

    def total(logits: Tensor) -> Tensor:
        return divergence(without(targets, base), without(targets, logits)).sum()

    assert torch.autograd.gradcheck(total, (now,))
    total(now).backward()
    others = 1 - F.one_hot(targets, 5)
    p, p0 = ((logits.exp() * others) / (logits.exp() * others).sum(-1, keepdim=True) for logits in (now.detach(), base))
    assert torch.allclose(found(now), p - p0, atol=1e-14)
    assert not found(now)[range(3), targets].any()


def test_the_term_is_a_token_mean_of_the_global_batch() -> None:
    """Padding counts nothing, rows count with their weight, and parts of a batch add up to the whole."""
    base, logits = torch.randn(2, 3, 2, 7).unbind()
    labels = torch.tensor([[4, -100], [1, 2], [-100, -100]])
    weights = torch.tensor([2.0, 0.5, 1.0])

    def term(rows: slice, weighed: bool) -> float:
        ids = torch.zeros(3, 2, dtype=torch.long)[rows]
        inputs = Inputs(ids, ids, ids, labels[rows], weights=weights[rows] if weighed else None)
        step = Step(inputs, logits[rows], labels[rows], torch.zeros(()), 0.0, lambda _: base, list, tokens=1.5)
        penalty = base_term(step, base[rows], 0.25)["base_kl"]
        assert penalty.weight == 0.25
        return penalty.raw.item()

    def kl(row: int, column: int) -> float:
        keep = [token for token in range(7) if token != labels[row, column]]
        p0, p = (values[row, column, keep].double().softmax(-1) for values in (base, logits))
        return float((p0 * (p0 / p).log()).sum())

    plain, whole = kl(0, 0) + kl(1, 0) + kl(1, 1), slice(None)
    assert term(whole, False) == pytest.approx(plain / 1.5, rel=1e-5)
    weighed = (2 * kl(0, 0) + 0.5 * (kl(1, 0) + kl(1, 1))) / 1.5
    assert term(whole, True) == pytest.approx(weighed, rel=1e-5)
    assert term(slice(0, 1), True) + term(slice(1, 3), True) == pytest.approx(weighed, rel=1e-5)
    assert term(slice(2, 3), False) == 0


# --- stages ---------------------------------------------------------------------------------------------------------------

PARAMS = CASES["o_lora"].params | {"dropout": 0.0}


def test_the_logged_loss_is_weighed_by_the_entropy(tiny: Any) -> None:
    """At the first step: sum of H CE over the answers' tokens, divided by their number, from the module's own logits."""
    examples = TASKS[0].train
    result = run_stage_in_memory(
        tiny, PARAMS, TASKS, probe=probe_logits(tiny, examples), loss="eaft", batch_size=16, epochs=1
    )
    total, count = 0.0, 0
    for example, logits in zip(examples, result.probes[0], strict=True):
        answer = torch.tensor(encoder_of(tiny).encode([example])[0].answer)
        rows = logits if tiny.backbone.encoder_decoder else logits[-len(answer) - 1 : -1]
        p = rows.double().sort(-1, descending=True).values[:, :20].softmax(-1)
        entropy = -(p * p.log()).sum(-1) / math.log(20)
        total += float((entropy * F.cross_entropy(rows.double(), answer, reduction="none")).sum())
        count += len(answer)
    assert result.log[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_divergence_from_the_base_starts_at_0_and_holds_the_model(tiny: Any) -> None:
    """B = 0 at the first step of the first stage; a large weight keeps it low; a second stage begins above 0."""
    ends = {}
    for weight in (1e-6, 100.0):
        first, second = run_sequence_in_memory(tiny, PARAMS, TASKS, base_kl=weight)
        terms = [record["terms"]["base_kl"] for record in first.log]
        assert terms[0]["raw"] == pytest.approx(0, abs=1e-6) and terms[-1]["raw"] > 0
        assert terms[-1]["weighted"] == pytest.approx(weight * terms[-1]["raw"])
        ends[weight] = terms[-1]["raw"]
        assert second.log[0]["terms"]["base_kl"]["raw"] > 1e-8
    assert ends[100.0] < ends[1e-6] / 5


def test_micro_batches_do_not_change_the_losses(tiny: Any) -> None:
    """One micro-batch of 8 or four of 2: the same losses and terms, up to rounding."""
    logs = [run_stage_in_memory(tiny, PARAMS, TASKS, micro_batch_size=size, **BOTH).log for size in (8, 2)]
    for one, four in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-3)
        assert one["terms"]["base_kl"]["raw"] == pytest.approx(four["terms"]["base_kl"]["raw"], rel=1e-3, abs=1e-6)


def test_a_killed_stage_goes_on_where_it_was(tiny: Any) -> None:
    """The log and the part of one that nothing disturbed, bit for bit, dropout included."""
    params, train = PARAMS | {"dropout": 0.2}, {"epochs": 3, "batch_size": 8, **BOTH}
    part, log = run_one(tiny, Job(params, train), TASKS, run_stage_in_memory(tiny, params, TASKS).state)
    memory, state = Memory(), run_stage_in_memory(tiny, params, TASKS).state
    resumable = Job(params, train | {"checkpoint_every": 4})
    with pytest.raises(Killed):
        run_one(tiny, resumable, TASKS, state, partial=memory)
    again, relogged = run_one(tiny, resumable, TASKS, state, partial=memory)
    assert same_part(part, again) and [one["terms"] for one in relogged] == [one["terms"] for one in log]


def test_a_weight_of_0_and_cross_entropy_change_no_bit(tiny: Any) -> None:
    """What is left out of keys at its default: K has no effect without the entropy."""
    plain = run_stage_in_memory(tiny, PARAMS, TASKS).part
    assert same_part(plain, run_stage_in_memory(tiny, PARAMS, TASKS, loss_top_k=2, base_kl=0.0).part)
    for change in ({"loss": "eaft"}, {"base_kl": 0.5}):
        assert not same_part(plain, run_stage_in_memory(tiny, PARAMS, TASKS, **change).part)


def test_a_base_model_in_bf16(tiny_bf16: Any) -> None:
    """Both terms are fp32 and finite, and the loss falls."""
    log = run_stage_in_memory(tiny_bf16, PARAMS, TASKS, epochs=20, **BOTH).log
    assert log[-1]["loss"] < log[0]["loss"] and 0 < log[-1]["terms"]["base_kl"]["raw"] < 100


@pytest.mark.slow
def test_two_workers_do_what_one_does(tiny_folders: Any, tmp_path: Any) -> None:
    """With replayed rows and with gates, and shared out by ZeRO as by none."""
    jobs = [
        replace(job, name=f"{name}-{zero}", train=job.train | BOTH | {"zero_stage": zero})
        for name, stages in (("replay", (0, 2, 3)), ("gain_lora_over_o", (0, 3)), ("l2p", (0,)))
        for zero in stages
        for job in [job_of(name, CASES[name], tiny_folders["llama"])]
    ]
    assert_a_pair_does_what_one_does(tmp_path, jobs, make_odd_tasks())
