"""SLAO: the orthonormal start, the merging recursion, and which adapter is trained and which served."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.branches import LoraShape
from raycl.methods.common.weights import LoraTrainee
from raycl.methods.slao import TUNED_A, TUNED_B, Slao, SlaoParams, merge, merge_rate, orthonormal_rows, start_branch
from raycl.state.stage_state import Branch, StagePart
from raycl.testing.probes import largest_difference, make_method, probe_logits, same_part, served_logits, tensors_of
from tests.kit.cases import CASES

PARAMS = CASES["slao"].params


def test_lambda_by_hand():
    """1/sqrt(i), 1/i and 1, from i = 1; never clamped."""
    assert [merge_rate("inverse_sqrt", i) for i in range(1, 5)] == pytest.approx([1, 0.70711, 0.57735, 0.5], abs=1e-5)
    assert merge_rate("inverse_sqrt", 400) == pytest.approx(0.05)
    assert [merge_rate("mean", i) for i in range(1, 4)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert merge_rate("none", 7) == 1


def test_the_recursion_by_hand():
    """B_ft = 1, 3, 0: B_merge = 1, 1 + 0.7071 * 2 = 2.41421, 2.41421 * (1 - 0.57735) = 1.02036; a constant B stays."""
    merged = torch.tensor(1.0)
    for stage, expected in ((2, 2.41421), (3, 1.02036)):
        merged = merge(merged, torch.tensor([3.0, 0.0][stage - 2]), merge_rate("inverse_sqrt", stage))
        assert merged.item() == pytest.approx(expected, abs=1e-5)
    b = torch.randn(3, 2)
    assert torch.allclose(merge(b, b, merge_rate("inverse_sqrt", 5)), b)


def test_the_orthonormal_start_by_hand():
    """A = [[3, 0, 4], [0, -2, 0]]: its rows are orthogonal, so A_i has them at length 1 with their own signs."""
    rows, r = orthonormal_rows(torch.tensor([[3.0, 0.0, 4.0], [0.0, -2.0, 0.0]]))
    assert torch.allclose(rows, torch.tensor([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0]]))
    assert torch.allclose(r, torch.tensor([[5.0, 0.0], [0.0, 2.0]]).double())


def test_the_start_is_orthonormal_and_spans_the_same():
    """A_i A_i^T = I, projectors on both row spaces agree, R_jj >= 0, R^T A_i = A; orthonormal rows are a fixed point."""
    a = torch.randn(4, 48, generator=torch.Generator().manual_seed(0)) / 7
    rows, r = orthonormal_rows(a)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    projector = torch.linalg.pinv(a.double()) @ a.double()
    assert (rows.T.double() @ rows.double() - projector).abs().max() <= 1e-5
    assert (r.diagonal() >= 0).all()
    assert torch.allclose(r.T.float() @ rows, a, atol=1e-6)
    again, unit = orthonormal_rows(rows)
    assert torch.allclose(again, rows, atol=1e-6) and torch.allclose(unit, torch.eye(4).double(), atol=1e-6)


def test_a_lost_row_keeps_its_place():
    """A row of zeros has R_jj = 0, whose sign counts as +: the start has no zero row."""
    rows, _ = orthonormal_rows(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(rows @ rows.T, torch.eye(2), atol=1e-6)


def test_what_is_trained_on_and_what_is_served(tiny, toy_tasks, run_sequence):
    """Each stage starts from the fine-tuned factors, and serves its fine-tuned A with the merged B."""
    results = run_sequence(tiny, PARAMS, toy_tasks)
    tuned = [_factors(result.after) for result in results]
    merged = {}
    for stage, result in enumerate(results, start=1):
        for path, (a, b) in tuned[stage - 1].items():
            merged[path] = b if stage == 1 else merged[path] + stage**-0.5 * (b - merged[path])
            assert torch.equal(result.part.branch.a[path], a)
            assert torch.equal(result.part.tensors[TUNED_B + path], b)
            assert torch.allclose(result.part.branch.b[path], merged[path], atol=1e-7)
        if stage > 1:
            for path, (a, b) in _factors(result.before).items():
                assert torch.equal(a, orthonormal_rows(tuned[stage - 2][path][0])[0])
                assert torch.equal(b, tuned[stage - 2][path][1])
            assert any(not torch.equal(result.part.branch.b[path], b) for path, (_, b) in tuned[stage - 1].items())
    sizes = [{name: value.shape for name, value in tensors_of(result.part).items()} for result in results]
    assert sizes[0] == sizes[1] == sizes[2]


def test_the_served_function_is_that_of_the_merged_branch(tiny, toy_tasks, run_sequence):
    """From stage 2 on the served logits are not those of the trained branch."""
    results = run_sequence(tiny, PARAMS, toy_tasks[:2], probe=probe_logits(tiny, toy_tasks[0].test))
    logits = [served_logits(tiny, PARAMS, result.state, toy_tasks[0].test) for result in results]
    assert largest_difference(logits[0], results[0].probes[1]) == 0
    assert largest_difference(logits[1], results[1].probes[1]) > 1e-3


def test_first_stage_is_that_of_sin_lora(tiny, toy_tasks, run_stage):
    """Bit for bit SinLoRA's first branch, beside which its B stands once more."""
    ours = run_stage(tiny, PARAMS, toy_tasks).part
    plain = run_stage(tiny, CASES["sin_lora"].params, toy_tasks).part
    assert same_part(StagePart(ours.task, ours.branch), plain)


def test_the_function_is_preserved_on_request(tiny, toy_tasks, run_sequence):
    """With `preserve_function` a stage starts from the fine-tuned function of the one before; without, it does not."""
    for preserve in (True, False):
        params = PARAMS | {"preserve_function": preserve}
        first, second = run_sequence(tiny, params, toy_tasks[:2], probe=probe_logits(tiny, toy_tasks[0].test))
        assert (largest_difference(first.probes[1], second.probes[0]) < 1e-4) == preserve


def test_a_fresh_start(tiny, toy_tasks, run_sequence, run_stage):
    """start_from=random: every stage begins with a branch of its own and B = 0."""
    results = run_sequence(tiny, PARAMS | {"start_from": "random"}, toy_tasks[:2])
    assert not any(b.any() for _, b in _factors(results[1].before).values())
    random = run_stage(tiny, PARAMS | {"start_from": "random", "preserve_function": True}, toy_tasks, results[0].state)
    assert same_part(random.part, results[1].part)


def test_both_factors_merged(tiny, toy_tasks, run_sequence):
    """merges=both, lambda = 1/i: plain means of both factors are served; `start_from` chooses what the next starts from."""
    starts = {}
    for start in ("tuned", "merged"):
        params = PARAMS | {"merges": "both", "merge_schedule": "mean", "start_from": start}
        results = run_sequence(tiny, params, toy_tasks)
        for path, (a, b) in _factors(results[1].after).items():
            first, second = results[0].part, results[1].part
            assert torch.allclose(second.branch.a[path], (first.branch.a[path] + a) / 2, atol=1e-6)
            assert torch.allclose(second.branch.b[path], (first.branch.b[path] + b) / 2, atol=1e-6)
            assert torch.equal(second.tensors[TUNED_A + path], a)
            old_a, old_b = (a, b) if start == "tuned" else (second.branch.a[path], second.branch.b[path])
            begun = _factors(results[2].before)[path]
            assert torch.equal(begun[0], orthonormal_rows(old_a)[0]) and torch.equal(begun[1], old_b)
        starts[start] = results[1].part
    # After stage 1 tuned and merged are the same.
    assert same_part(*starts.values())


def test_without_merging_the_trained_branch_is_served(tiny, toy_tasks, run_sequence):
    """merge_schedule=none: the branch is (A_ft, B_ft), and `merges` is no part of the key."""
    results = run_sequence(tiny, PARAMS | {"merge_schedule": "none"}, toy_tasks[:2])
    for path, b in results[1].part.branch.b.items():
        assert torch.equal(b, results[1].part.tensors[TUNED_B + path])
    assert "merges" not in results[1].method.params.at(2)


def test_a_tuned_a_of_its_own_is_the_start():
    """With both factors merged, the start is read from the fine-tuned A, not from the served one."""
    branch = Branch(1, 1.0, {"m": torch.tensor([[1.0, 0.0]])}, {"m": torch.tensor([[5.0]])})
    tensors = {TUNED_A + "m": torch.tensor([[0.0, 2.0]]), TUNED_B + "m": torch.tensor([[7.0]])}
    start = start_branch(StagePart("t", branch, tensors), SlaoParams())
    assert start.a["m"].tolist() == [[0.0, 1.0]] and start.b["m"].tolist() == [[7.0]]


def test_published_settings():
    """Llama: 1e-4, batch 8, one epoch; SuperNI 5e-5 and five epochs."""
    assert Slao.settings("llama", "std-1")["train"]["lr"] == 1e-4
    short = Slao.settings("llama", "sni-1")["train"]
    assert (short["lr"], short["epochs"], short["batch_size"]) == (5e-5, 5, 8)
    assert Slao.settings("t5", "sni-1")["method"]["rank"] == 8
    assert isinstance(make_method(PARAMS).make_trainee(), LoraTrainee)
    assert make_method(PARAMS).make_trainee().shape == LoraShape(4, 16, 0.1, None)


def _factors(tensors):
    """(A, B) of every adapted module, from the stage module's parameters."""
    ending = ".lora_A.branch.weight"
    paths = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    return {
        path.removeprefix("model."): (tensors[path + ending], tensors[path + ".lora_B.branch.weight"]) for path in paths
    }
