"""SAPT-LoRA: the attention and the KL by hand, padded targets, what is replayed, and that replay holds the routing."""

from __future__ import annotations

import math

import pytest
import torch

from raycl.adapters.routing import Router, fresh_key, fresh_query
from raycl.methods.sapt_lora import SaptLora, drift
from raycl.testing.probes import batch_of, make_method, same_part, serving, tensors_of
from tests.kit.cases import CASES

PARAMS = CASES["sapt_lora"].params | {"dropout": 0.0}


def by_hand() -> Router:
    """d = 2, h = 1: p = (1, 2) -> 3 -> (3, -3) -> SiLU -> LayerNorm (1, -1); keys (1, 0) and (0, 1)."""
    query = {
        "down.weight": torch.tensor([[1.0, 1.0]]),
        "up.weight": torch.tensor([[1.0], [-1.0]]),
        "norm.weight": torch.ones(2),
        "norm.bias": torch.zeros(2),
    }
    return Router(query, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), train=True)


def test_the_attention_by_hand():
    """Scores +-1 / sqrt(2): a = (e^(1/sqrt 2), e^(-1/sqrt 2)) / their sum, which is 1."""
    weights = by_hand()(torch.tensor([[1.0, 2.0]])).exp()[0]
    first = 1 / (1 + math.exp(-math.sqrt(2)))
    assert weights.tolist() == pytest.approx([first, 1 - first], abs=1e-5)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_only_net_and_new_key_have_gradients():
    """Old keys are no parameters; the attention is fp32 under bf16 autocast."""
    router = by_hand()
    with torch.autocast("cpu", torch.bfloat16):
        weights = router(torch.tensor([[1.0, 2.0]]))
    assert weights.dtype == torch.float32
    weights[0, 0].backward()
    assert {name for name, _ in router.named_parameters()} == {
        "key", "down.weight", "up.weight", "norm.weight", "norm.bias",
    }  # fmt: skip
    assert router.key.grad.abs().sum() > 0 and router.old_keys.grad is None
    frozen = Router(router.query(), None, router.key.detach(), train=False)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_the_drift_by_hand():
    """Targets (1, 0, 0) and (1/2, 1/2, 0); a = (1/2, 1/4, 1/4): KL = ln 2 and 1/2 ln 2, times n / n_j, over 4 rows."""
    log_weights = torch.tensor([[0.5, 0.25, 0.25]] * 4).log().requires_grad_()
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    value = drift(log_weights, targets, torch.tensor([0, 1, 0, 2]), torch.tensor([3.0, 5.0]))
    assert value.item() == pytest.approx((3 * math.log(2) + 5 * 0.5 * math.log(2)) / 4, abs=1e-6)
    value.backward()
    assert not log_weights.grad[0].any() and not log_weights.grad[2].any() and torch.isfinite(log_weights.grad).all()
    assert drift(log_weights, targets, torch.zeros(4, dtype=torch.long), torch.ones(2)).item() == 0.0


def test_the_drift_is_0_where_nothing_moved():
    """The same attention, and no weight on newer branches: exactly no KL; weight on a newer branch costs."""
    target = torch.tensor([[0.25, 0.75, 0.0]])
    same, moved = torch.tensor([[0.25, 0.75, 1e-12]]).log(), torch.tensor([[0.2, 0.6, 0.2]]).log()
    stages, scales = torch.tensor([1]), torch.ones(1)
    assert drift(same, target, stages, scales).item() == pytest.approx(0.0, abs=1e-7)
    assert drift(moved, target, stages, scales).item() == pytest.approx(math.log(1.25), abs=1e-6)


def test_over_an_epoch_the_drift_is_the_sum_of_the_tasks_means(tiny, toy_tasks, run_sequence):
    """With all rows in one batch, raw = sum_j mean over task j of KL; the new task's rows count nothing."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:2])[1].state
    method = make_method(PARAMS, 3)
    method.install(tiny.backbone, state)
    try:
        rows = method.examples(toy_tasks[2].train, None)
        stages = torch.tensor([row.stage for row in rows])
        logs = torch.randn(len(rows), 3).log_softmax(-1)
        means = [
            torch.nn.functional.kl_div(logs[stages == j], method.targets[[j - 1]].expand(8, -1), reduction="none")
            .sum(dim=1)
            .mean()
            for j in (1, 2)
        ]
        assert drift(logs, method.targets, stages, method.scales).item() == pytest.approx(sum(means).item(), rel=1e-5)
    finally:
        method.remove()


def test_padded_targets_are_what_the_parts_hold(tiny, toy_tasks, run_sequence):
    """abar_j ends with zeros for the tasks since; each target sums to 1; that of the first task begins as (1)."""
    results = run_sequence(tiny, PARAMS, toy_tasks)
    held = [result.part.tensors["attention"] for result in results]
    assert [len(values) for values in held] == [1, 2, 3] and held[0].tolist() == [1.0]
    method = make_method(PARAMS, 3)
    method.install(tiny.backbone, results[1].state)
    try:
        assert method.targets.shape == (2, 3)
        assert torch.allclose(method.targets.sum(dim=1), torch.ones(2), atol=1e-6)
        assert method.targets[0].tolist() == [1.0, 0.0, 0.0] and method.targets[1, 2] == 0
    finally:
        method.remove()


def test_the_stored_attention_is_the_mean_over_the_tasks_own_inputs(tiny, toy_tasks, run_sequence):
    """Replayed rows of the pass do not enter it."""
    result = run_sequence(tiny, PARAMS, toy_tasks[:2])[1]
    with serving(tiny, PARAMS, result.state) as method:
        method.condition(batch_of(tiny, toy_tasks[1].train))
        mean = method.log_weights.exp().mean(dim=0)
    assert torch.allclose(mean, result.part.tensors["attention"], atol=1e-6)


def test_the_prompt_alone_decides(tiny, toy_tasks, run_sequence):
    """With and without the answer, the attention is the same: training and generation agree."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:2])[1].state
    with serving(tiny, PARAMS, state) as method:
        method.condition(batch_of(tiny, toy_tasks[1].test))
        training = method.log_weights.clone()
        method.condition(batch_of(tiny, toy_tasks[1].test, answers=False))
        assert torch.equal(method.log_weights, training)


def test_the_memory_and_its_rows(tiny, toy_tasks, run_sequence):
    """Half of each task's 16 examples, marked with their stage; by default without weight in the cross-entropy."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:2])[1].state
    for weight in (0.0, 0.5):
        method = make_method(PARAMS | {"replay_weight": weight}, 3)
        method.install(tiny.backbone, state)
        try:
            rows = method.examples(toy_tasks[2].train, None)
        finally:
            method.remove()
        assert [sum(row.stage == stage for row in rows) for stage in (0, 1, 2)] == [16, 8, 8]
        assert {row.weight for row in rows if row.stage} == {weight}
        assert all(row.example in toy_tasks[row.stage - 1].train for row in rows if row.stage)
        assert method.scales.tolist() == [4.0, 4.0]


def test_stage_1_trains_sin_loras_branch(tiny, toy_tasks, run_stage):
    """One key: a = 1 whatever the net says. The term appears from stage 2 on."""
    first = run_stage(tiny, PARAMS, toy_tasks)
    plain = run_stage(tiny, CASES["sin_lora"].params | {"dropout": 0.0}, toy_tasks).part
    for path, b in plain.branch.b.items():
        assert torch.allclose(first.part.branch.b[path], b, atol=1e-6)
    assert first.log[0]["terms"] == {}
    second = run_stage(tiny, PARAMS, toy_tasks, first.state)
    assert all(record["terms"]["attention"]["weighted"] >= 0 for record in second.log)


def test_old_keys_and_parts_stay_while_the_net_moves_on(tiny, toy_tasks, run_sequence):
    """Each part has its own key; the net that the third stage serves is not that of the second."""
    results = run_sequence(tiny, PARAMS, toy_tasks)
    keys = torch.cat([result.part.tensors["key"] for result in results])
    with serving(tiny, PARAMS, results[-1].state) as method:
        assert torch.equal(torch.cat([method.router.old_keys, method.router.key]), keys)
        assert torch.equal(method.router.down.weight, results[-1].part.tensors["query/down.weight"])
    assert not torch.equal(results[1].part.tensors["query/up.weight"], results[2].part.tensors["query/up.weight"])
    assert torch.equal(results[0].part.tensors["query/up.weight"], fresh_like(results[0]))


def fresh_like(result) -> torch.Tensor:
    """The query net's second layer as the first stage draws it: at stage 1 it does not train."""
    return fresh_query(48, 16, result.method.info.generator("routing"))["up.weight"]


def test_the_kl_holds_the_routing_of_old_inputs(tiny, toy_tasks, run_sequence, run_stage):
    """After a second stage, the first task's inputs go to the first branch more surely with the KL than without."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    shares = {}
    for weight in (0.0, 5.0):
        params = PARAMS | {"kl_weight": weight}
        result = run_stage(tiny, params, toy_tasks, state, epochs=20)
        with serving(tiny, params, result.state) as method:
            method.condition(batch_of(tiny, toy_tasks[0].test))
            shares[weight] = method.log_weights.exp()[:, 0].mean().item()
    assert shares[5.0] > 0.9 and shares[5.0] > shares[0.0]


def test_micro_batches_do_not_change_a_stage(tiny, toy_tasks, run_sequence, run_stage):
    """One micro-batch of 8 or four of 2, and ZeRO 2: the same part up to rounding."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    cuts = [{"micro_batch_size": 8}, {"micro_batch_size": 2}, {"micro_batch_size": 4, "zero_stage": 2}]
    parts = [tensors_of(run_stage(tiny, PARAMS, toy_tasks, state, epochs=1, lr=1e-3, **cut).part) for cut in cuts]
    for other in parts[1:]:
        assert all(torch.allclose(other[name], value, atol=2e-5) for name, value in parts[0].items())


def test_without_weights_the_memory_only_dilutes(tiny, toy_tasks, run_sequence, run_stage):
    """kl_weight = 0 and replay_weight = 0 is not an error, and `replay_weight` has an effect."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    none = run_stage(tiny, PARAMS | {"kl_weight": 0.0}, toy_tasks, state)
    assert none.log[0]["terms"] == {}
    some = run_stage(tiny, PARAMS | {"kl_weight": 0.0, "replay_weight": 1.0}, toy_tasks, state)
    assert not same_part(none.part, some.part)


def test_a_served_state_without_a_batch_says_so(tiny, toy_tasks, run_sequence):
    """The attention must be conditioned first."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:1])[0].state
    with serving(tiny, PARAMS, state), pytest.raises(RuntimeError, match="conditioned"):
        tiny.backbone.model(input_ids=torch.tensor([[1, 5]]), decoder_input_ids=torch.tensor([[0]])) if (
            tiny.backbone.encoder_decoder
        ) else tiny.backbone.model(input_ids=torch.tensor([[1, 5]]))


def test_keys_are_drawn_uniformly_and_settings_name_the_published_values():
    """U(-1, 1); lambda 0.5 and 0.1 on T5, 1 and 2 on Llama."""
    key = fresh_key(4000, torch.Generator().manual_seed(0))
    assert key.shape == (1, 4000) and key.abs().max() <= 1 and key.abs().mean().item() == pytest.approx(0.5, abs=0.02)
    weights = {
        (f, o): SaptLora.settings(f, o)["method"]["kl_weight"] for f in ("t5", "llama") for o in ("sni-1", "long-4")
    }
    assert weights == {("t5", "sni-1"): 0.5, ("t5", "long-4"): 0.1, ("llama", "sni-1"): 1.0, ("llama", "long-4"): 2.0}
