"""WiSE: weights of a stage and those before it, averaged; what later stages train on; the share 1 is IncLoRA."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from raycl.methods.wise import WiseParams
from raycl.testing.probes import largest_difference, probe_logits, same_part, served_logits
from tests.kit.cases import CASES

PARAMS = CASES["wise"].params
SCALE = PARAMS["alpha"] / PARAMS["rank"]


def updates(factors):
    """s B A of every adapted module, from a branch or from the weights right after training."""
    if isinstance(factors, dict):
        paths = [
            name.removesuffix(".lora_A.branch.weight") for name in factors if name.endswith("lora_A.branch.weight")
        ]
        pairs = {path: [factors[f"{path}.lora_{letter}.branch.weight"] for letter in "AB"] for path in paths}
        return {path.removeprefix("model."): SCALE * b @ a for path, (a, b) in pairs.items()}
    return {path: factors.alpha / factors.rank * factors.b[path] @ factors.a[path] for path in factors.a}


def test_what_is_kept_by_hand():
    """w, one w per stage, or 1 / t; nothing above 1, and not nothing."""
    assert [WiseParams().kept(stage) for stage in (1, 2, 3)] == [0.5, 0.5, 0.5]
    assert [WiseParams(share=[1.0, 0.5, 0.25]).kept(stage) for stage in (1, 2, 3)] == [1.0, 0.5, 0.25]
    assert [WiseParams(schedule="mean").kept(stage) for stage in (1, 2, 4)] == [1.0, 0.5, 0.25]
    for share in (0.0, 1.5, [0.5, 0.0]):
        with pytest.raises(ValidationError):
            WiseParams(share=share)


def test_a_share_of_one_is_inc_lora(tiny, toy_tasks, run_sequence):
    """Bit for bit, over three tasks."""
    ours = run_sequence(tiny, PARAMS | {"share": 1.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks)
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("choice", [{"share": 0.25}, {"share": [1.0, 0.5, 0.25]}, {"schedule": "mean"}], ids=str)
def test_the_weights_are_the_recursion(tiny, toy_tasks, run_sequence, choice):
    """W_t - W_0 = (1 - w) (W_{t-1} - W_0) + w (W'_t - W_0), stage by stage; with the mean it is that of all W'_t."""
    results = run_sequence(tiny, PARAMS | choice, toy_tasks)
    shares = {"share": choice.get("share"), "mean": [1, 1 / 2, 1 / 3]}[choice.get("schedule", "share")]
    shares = shares if isinstance(shares, list) else [shares] * 3
    before, trained = {}, []
    for result, share in zip(results, shares, strict=True):
        learned = updates(result.after)
        ends = {path: before.get(path, 0) + update for path, update in learned.items()}
        trained.append(ends)
        wanted = {path: (1 - share) * before.get(path, 0) + share * end for path, end in ends.items()}
        held = {path: sum(updates(part.branch)[path] for part in result.state.parts) for path in ends}
        assert all(torch.allclose(held[path], wanted[path], atol=1e-6) for path in wanted)
        assert any(not torch.allclose(held[path], ends[path], atol=1e-3) for path in wanted) == (share < 1)
        before = held
    if "schedule" in choice:
        assert all(torch.allclose(before[path], sum(one[path] for one in trained) / 3, atol=1e-6) for path in before)


def test_a_stage_trains_on_the_averaged_weights(tiny, toy_tasks, run_sequence):
    """What is served after stage t is what stage t + 1 begins with, and not what stage t ended with."""
    examples = toy_tasks[0].test
    results = run_sequence(tiny, PARAMS, toy_tasks, probe=probe_logits(tiny, examples))
    for earlier, later in pairwise(results):
        served = served_logits(tiny, PARAMS, earlier.state, examples)
        largest = max(row.abs().max().item() for row in served)
        assert largest_difference(served, later.probes[0]) <= 1e-5 * largest
        assert largest_difference(served, earlier.probes[1]) > 0.01 * largest
