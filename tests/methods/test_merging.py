"""Merging: the rules by hand on 2x3 matrices, the trimming threshold, and the model that is served."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.task_vectors import elect, largest, magnitude, mean, refactor, trim
from raycl.methods.common.weights import WEIGHTS
from raycl.methods.merging import Merging, MergingParams
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.probes import largest_difference, make_method, probe_logits, same_part, served_logits
from tests.kit.cases import CASES

PARAMS = CASES["merging"].params
VECTORS = [
    torch.tensor([[4.0, -1.0, 0.0], [2.0, -3.0, 1.0]]),
    torch.tensor([[-2.0, 3.0, 1.0], [2.0, 3.0, -5.0]]),
    torch.tensor([[2.0, -5.0, 6.0], [1.0, -1.0, 1.0]]),
]


def test_the_mean_by_hand():
    """Entry by entry, zeros count."""
    assert torch.allclose(mean(VECTORS), torch.tensor([[4.0, -3.0, 7.0], [5.0, -1.0, -3.0]]) / 3)


def test_magmax_by_hand():
    """The largest magnitude with its sign; of -3 and 3 the later one."""
    assert largest(VECTORS).tolist() == [[4.0, -5.0, 6.0], [2.0, 3.0, -5.0]]
    assert largest(VECTORS[:1]).tolist() == VECTORS[0].tolist()


def test_ties_by_hand():
    """Half of the entries is kept: thresholds 2, 3, 2. Sums 6, -2, 6 and 2, 0, -5 elect the signs; (4 + 2) / 2 = 3; -3 and
    3 cancel."""
    thresholds = [magnitude(lambda vector=vector: [vector], 0.5) for vector in VECTORS]
    assert thresholds == [2.0, 3.0, 2.0]
    trimmed = [trim(vector, threshold) for vector, threshold in zip(VECTORS, thresholds, strict=True)]
    assert trimmed[1].tolist() == [[0.0, 3.0, 0.0], [0.0, 3.0, -5.0]]
    assert elect(trimmed).tolist() == [[3.0, -5.0, 6.0], [2.0, 0.0, -5.0]]


def test_without_trimming_ties_elects_among_all():
    """Nothing trimmed: (4 + 2)/2, (-1 - 5)/2, (1 + 6)/2, (2 + 2 + 1)/3, (-3 - 1)/2, -5."""
    assert torch.allclose(elect(VECTORS), torch.tensor([[3.0, -3.0, 3.5], [5 / 3, -2.0, -5.0]]))


@pytest.mark.parametrize("share", [0.001, 0.2, 0.77, 1.0])
def test_the_threshold_is_exact(share):
    """Over several tensors of any shape it is the k-th largest magnitude of all entries, whatever its bits."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(50, 30, generator=generator) * 10.0 ** -(3 * i) for i in range(3)]
    everything = torch.cat([tensor.flatten().abs() for tensor in tensors])
    expected = everything.topk(max(1, int(share * len(everything)))).values[-1].item()
    assert magnitude(lambda: iter(tensors), share) == expected
    assert magnitude(lambda: [torch.zeros(4)], share) == 0.0


def test_refactoring_is_the_truncated_svd():
    """diag(3, 2, 1) at rank 2 loses the 1; a rank above the dimensions is filled up with zeros."""
    a, b = refactor(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([3.0, 2.0, 0.0])), atol=1e-6)
    delta = torch.randn(5, 3)
    a, b = refactor(delta, 8)
    assert (a.shape, b.shape) == ((8, 3), (5, 8))
    assert torch.allclose(b @ a, delta, atol=1e-5)


@pytest.mark.parametrize("rule", ["magmax", "ties", "mean"])
def test_served_weights(tiny, toy_tasks, run_sequence, rule):
    """Served weights are theta_0 + scale * rule(alpha / r B_t A_t), and TIES trims over all modules at once."""
    state = run_sequence(tiny, PARAMS, toy_tasks)[-1].state
    weights = {name: value.clone() for name, value in tiny.backbone.model.named_parameters()}
    params = PARAMS | {"rule": rule, "scale": 0.7, "trim": 0.3}
    vectors = [{p: 4.0 * branch.b[p] @ branch.a[p] for p in branch.a} for branch in state.branches]
    if rule == "ties":
        for vector in vectors:
            entries = torch.cat([tensor.flatten().abs() for tensor in vector.values()])
            threshold = entries.topk(int(0.3 * len(entries))).values[-1]
            vector.update({p: tensor * (tensor.abs() >= threshold) for p, tensor in vector.items()})
    merge = {"magmax": largest, "ties": elect, "mean": mean}[rule]
    method = make_method(params, 3)
    method.serve(tiny.backbone, state)
    try:
        for name, value in tiny.backbone.model.named_parameters():
            path = name.removesuffix(".weight")
            delta = 0.7 * merge([vector[path] for vector in vectors]) if path in vectors[0] else 0.0
            assert torch.allclose(value, weights[name] + delta, atol=1e-6)
    finally:
        method.remove()
    assert all(torch.equal(value, weights[name]) for name, value in tiny.backbone.model.named_parameters())


def test_one_task_at_scale_one_is_the_trained_model(tiny, toy_tasks, run_stage):
    """The mean of one task vector is the fine-tuned model, in the weights or as a LoRA of the trained rank."""
    result = run_stage(tiny, PARAMS, toy_tasks, probe=probe_logits(tiny, toy_tasks[0].test))
    for extra in ({}, {"refactor_rank": 4}):
        logits = served_logits(tiny, PARAMS | {"rule": "mean"} | extra, result.state, toy_tasks[0].test)
        assert largest_difference(logits, result.probes[1]) < 1e-4


def test_a_refactored_model_approaches_the_exact_one(tiny, toy_tasks, run_sequence):
    """At full rank the LoRA gives the merged model's logits; at rank 1 it does not."""
    state = run_sequence(tiny, PARAMS, toy_tasks[:2])[-1].state
    exact = served_logits(tiny, PARAMS, state, toy_tasks[0].test)
    gaps = [
        largest_difference(served_logits(tiny, PARAMS | {"refactor_rank": r}, state, toy_tasks[0].test), exact)
        for r in (1, 48)
    ]
    assert gaps[1] < 1e-4 < gaps[0]


def test_sequential_is_sin_lora_and_independent_is_per_task(tiny, toy_tasks, run_sequence):
    """The chain's parts are those of SinLoRA bit for bit, the rule has no part in them; independent, a first part is that of
    PerTaskFT, whose stages draw as first stages do, and a second one starts from the backbone as it does."""
    ties, sin, ours, theirs = [
        run_sequence(tiny, params, toy_tasks[:2])
        for params in (
            PARAMS | {"rule": "ties"},
            CASES["sin_lora"].params,
            PARAMS | {"base": "independent"},
            CASES["per_task"].params,
        )
    ]
    assert all(same_part(a.part, b.part) for a, b in zip(ties, sin, strict=True))
    assert same_part(ours[0].part, theirs[0].part)
    for one in (ours, theirs):
        assert all(not value.any() for name, value in one[1].before.items() if ".lora_B." in name)


def test_all_weights_are_merged(tiny):
    """trains=full: theta_0 + (largest of theta_t - theta_0) / 2 on every weight."""
    own = {name: value.detach().clone() for name, value in tiny.backbone.model.named_parameters()}
    moves = [{name: torch.randn_like(value) for name, value in own.items()} for _ in range(2)]
    parts = [StagePart("t", tensors={WEIGHTS + n: own[n] + value for n, value in move.items()}) for move in moves]
    method = make_method({"name": "merging", "trains": "full"}, 2)
    method.serve(tiny.backbone, StageState(tuple(parts)))
    try:
        for name, value in tiny.backbone.model.named_parameters():
            expected = own[name] + 0.5 * largest([move[name] for move in moves])
            assert torch.allclose(value, expected, atol=1e-5)
    finally:
        method.remove()


def test_a_merged_bf16_model_stays_bf16(tiny_bf16):
    """The merged weights are rounded to the backbone's precision."""
    model = tiny_bf16.backbone.model
    path, module = next((p, m) for p, m in model.named_modules() if p.rsplit(".", 1)[-1] in tiny_bf16.backbone.targets)
    paths = {p: m for p, m in model.named_modules() if p.rsplit(".", 1)[-1] in tiny_bf16.backbone.targets}
    a = {p: torch.randn(2, m.in_features) for p, m in paths.items()}
    b = {p: torch.randn(m.out_features, 2) for p, m in paths.items()}
    own = module.weight.detach().clone()
    method = make_method({"name": "merging", "rank": 2, "alpha": 2}, 1)
    method.serve(tiny_bf16.backbone, StageState((StagePart("t", Branch(2, 2.0, a, b)),)))
    try:
        assert torch.equal(module.weight, (own.float() + 0.5 * (b[path] @ a[path])).bfloat16())
    finally:
        method.remove()
    assert torch.equal(module.weight, own)


def test_what_the_score_key_holds():
    """What acts on the served model only, with the rule's own scale written out."""
    assert MergingParams().serving() == {"rule": "magmax", "scale": 0.5, "refactor_rank": None}
    assert MergingParams(rule="ties").serving() == {"rule": "ties", "scale": 0.55, "trim": 0.2, "refactor_rank": None}
    assert MergingParams(rule="mean", trains="full", refactor_rank=3).serving() == {"rule": "mean", "scale": 1.0}
    assert not MergingParams().at(2).keys() & MergingParams().serving().keys()
    assert "train" in Merging.settings("llama", "std-1")
