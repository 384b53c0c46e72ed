"""GainLoRA: new gates are closed on the inputs of earlier tasks and stay closed under real training; what breaks that.

The engine is DeepSpeed's with AdamW, as in a real run. With gate_epsilon = 1 and few distinct inputs the subspaces are
exact, so every guarantee is a matter of round-off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raycl.adapters.branches import kaiming
from raycl.methods.gain_lora import GATE
from raycl.methods.inf_lora import stored_basis
from raycl.state.stage_state import StagePart, StageState
from raycl.testing.probes import largest_difference, served_logits
from tests.kit.cases import HIDDEN, SHAPE
from tests.kit.gates import EXACT, ZERO, gates_and_features


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(request, tiny, tiny_bf16):
    """Base weights in fp32, and in bf16 under autocast."""
    return tiny if request.param == "fp32" else tiny_bf16


@pytest.fixture(scope="module")
def exact(model, over, toy_tasks, run_sequence):
    """Three stages with exact subspaces; probes are gates and features on all tasks, at the start and the end."""
    return run_sequence(model, EXACT | {"over": over}, toy_tasks, epochs=10, probe=gates_and_features(model, toy_tasks))


def test_new_gates_are_closed_on_old_inputs_before_and_after_training(exact):
    """The new gate is 0 on every old input at its start and after all steps, open on its own, and it did train."""
    for stage, result in enumerate(exact[1:], start=2):
        start, end = result.probes
        for old in range(stage - 1):
            assert start[old]["a"][:, -1].max() <= ZERO
            assert end[old]["a"][:, -1].max() <= ZERO
        assert end[stage - 1]["a"][:, -1].min() > 0.1
        for before, after in zip(start[stage - 1]["features"][-1][1:], end[stage - 1]["features"][-1][1:], strict=True):
            assert (before - after).abs().max() > 1e-2


def test_features_of_old_inputs_do_not_move(exact):
    """Every p_l of the new gate equals the last gate's on old inputs, at the start and after training."""
    for stage, result in enumerate(exact[1:], start=2):
        for seen in result.probes:
            for old in range(stage - 1):
                new, last = seen[old]["features"][-1], seen[old]["features"][-2]
                for level in range(3):
                    assert (new[level] - last[level]).abs().max() <= ZERO


def test_old_gates_do_not_move_anywhere(exact):
    """Gates 1..t-1 give bit for bit the same values on all tasks before and after stage t."""
    for result in exact[1:]:
        start, end = result.probes
        for before, after in zip(start, end, strict=True):
            assert torch.equal(before["a"][:, :-1], after["a"][:, :-1])


def test_exact_subspaces_have_one_direction_per_input(exact):
    """With all of the energy wanted, four distinct inputs add four columns to each M_l, and M^T M = I."""
    state = exact[-1].state
    for level, width in enumerate((48, HIDDEN, 48)):
        assert [part.tensors[f"gate_basis/{level}"].shape[1] for part in state.parts] == [4, 4, 4]
        basis = stored_basis(state, f"gate_basis/{level}", width)
        assert (basis.T @ basis - torch.eye(12)).abs().max() <= 1e-5


def test_gates_train_in_full_precision(exact):
    """Gate weights are fp32 and use it, with a bf16 base too: they were not rounded to bf16 anywhere."""
    for result in exact:
        for name in result.trainable:
            value = result.after[name]
            assert value.dtype == torch.float32
            assert (value.bfloat16().float() != value).float().mean() > 0.5


def test_gate_values_have_one_column_per_branch_within_range(exact):
    """a is (examples, branches), within [0, 0.9641], also for a batch of one."""
    for stage, result in enumerate(exact, start=1):
        for seen in result.probes[1]:
            assert seen["a"].shape == (4, stage)
            assert seen["a"].min() >= 0 and seen["a"].max() <= 0.9641


def old_drift(model: Any, params: dict[str, Any], tasks: list[Any], results: list[Any]) -> float:
    """The largest change of an old task's logits, from the end of its own stage to any later one, as served."""
    drift = 0.0
    for old in (0, 1):
        then = served_logits(model, params, results[old].state, tasks[old].test)
        for later in results[old + 1 :]:
            drift = max(drift, largest_difference(served_logits(model, params, later.state, tasks[old].test), then))
    return drift


def test_old_logits_stay_and_the_new_task_is_learned(tiny, toy_tasks, run_sequence, over):
    """Over three tasks GainLoRA moves old tasks' logits by less than 1e-3 and fits task 3."""
    params = EXACT | {"over": over}
    results = run_sequence(tiny, params, toy_tasks, epochs=20)
    assert old_drift(tiny, params, toy_tasks, results) < 1e-3
    assert results[2].log[-1]["loss"] < results[2].log[0]["loss"] / 2


def test_sin_lora_forgets_the_same_tasks(tiny, toy_tasks, run_sequence):
    """Control: on the same tasks and settings SinLoRA moves old logits clearly."""
    params = SHAPE | {"name": "sin_lora", "dropout": 0.0}
    results = run_sequence(tiny, params, toy_tasks, epochs=20)
    assert old_drift(tiny, params, toy_tasks, results) > 0.5


# What the guarantee rests on, taken away piece by piece.


def test_a_plain_sigmoid_leaves_the_new_gate_half_open(tiny, first, toy_tasks, run_stage):
    """Control: with f(0) = 0.5 the new gate is 0.5 on old inputs, however orthogonal its key is."""
    sigmoid = EXACT | {"gate_squash": "sigmoid"}
    result = run_stage(tiny, sigmoid, toy_tasks, first.state, epochs=1, probe=gates_and_features(tiny, toy_tasks))
    assert (result.probes[0][0]["a"][:, -1] - 0.5).abs().max() <= ZERO


def test_gate_layers_drawn_anew_open_the_new_gate(tiny, first, toy_tasks, run_stage):
    """Control: without copying W1 and W2 old features leave span(M), and the new gate is open on old inputs."""
    last = first.part
    draw = torch.Generator().manual_seed(5)
    fresh = {f"{GATE}{i}": kaiming(last.tensors[f"{GATE}{i}"].shape, draw) for i in (0, 1)}
    redrawn = StageState((StagePart(last.task, last.branch, last.tensors | fresh, last.facts),))
    result = run_stage(tiny, EXACT, toy_tasks, redrawn, epochs=1, probe=gates_and_features(tiny, toy_tasks))
    assert result.probes[0][0]["a"][:, -1].max() > 0.01


def test_the_two_constraints_act_independently(tiny, first, toy_tasks, run_stage):
    """Without the update constraint the gate starts closed and drifts open; without the initial one it starts open, and
    the scores on old inputs still do not move; with neither, both go wrong."""
    ends = {}
    for initial in (True, False):
        for update in (True, False):
            params = EXACT | {"init_constraint": initial, "update_constraint": update}
            probe = gates_and_features(tiny, toy_tasks)
            ends[initial, update] = run_stage(tiny, params, toy_tasks, first.state, epochs=10, probe=probe).probes

    def gate(probes, when):
        return probes[when][0]["a"][:, -1].max().item()

    def moved(probes):
        return (probes[1][0]["scores"][-1] - probes[0][0]["scores"][-1]).abs().max().item()

    assert gate(ends[True, True], 0) <= ZERO and gate(ends[True, True], 1) <= ZERO
    assert gate(ends[True, False], 0) <= ZERO and gate(ends[True, False], 1) > 1e-3
    assert gate(ends[False, True], 0) > 1e-2 and moved(ends[False, True]) <= ZERO
    assert gate(ends[False, False], 0) > 1e-2 and moved(ends[False, False]) > 1e-3


def test_rescaling_rows_after_training_breaks_the_old_features(tiny, first, toy_tasks, run_stage):
    """Control: bringing the rows of W1 and W2 back to their norms, as a released trainer does, moves old features."""
    result = run_stage(tiny, EXACT, toy_tasks, first.state, epochs=10, probe=gates_and_features(tiny, toy_tasks))
    kept = result.probes[1][0]["features"][-2]
    p = [kept[0]]
    for level in (0, 1):
        start, end = (part.tensors[f"{GATE}{level}"] for part in (first.part, result.part))
        scaled = end * start.norm(dim=1, keepdim=True) / end.norm(dim=1, keepdim=True)
        p.append(torch.nn.functional.silu(p[-1] @ scaled.T))
    assert max((ours - old).abs().max().item() for ours, old in zip(p, kept, strict=True)) > 1e-3


# The same inputs again, and full subspaces.


def test_a_task_on_old_inputs_keeps_the_new_gate_closed(tiny, first, toy_tasks, run_stage):
    """A second task on the very prompts of the first has no direction of its own: the gate stays closed there, and a
    warning says that it cannot learn."""
    again = replace(toy_tasks[0], name="again")
    with pytest.warns(UserWarning, match=r"the new gate starts at 0\.000"):
        result = run_stage(
            tiny, EXACT, [toy_tasks[0], again], first.state, epochs=1, probe=gates_and_features(tiny, toy_tasks)
        )
    assert result.probes[1][0]["a"][:, -1].max() <= ZERO


def test_a_full_subspace_freezes_its_layer(tiny, toy_tasks, run_sequence):
    """Once M_2 fills R^h the second gate layer is fixed, the others still train, and the old gates' zero holds."""
    narrow = EXACT | {"gate_hidden": [3]}
    results = run_sequence(tiny, narrow, toy_tasks[:2], probe=gates_and_features(tiny, toy_tasks))
    gates = [name for name in results[1].trainable if name.startswith("extra.")]
    assert gates == ["extra.gates.1.key.move", "extra.gates.1.layers.0.move"]
    assert torch.equal(results[0].part.tensors[f"{GATE}1"], results[1].part.tensors[f"{GATE}1"])
    assert results[1].probes[1][0]["a"][:, -1].max() <= ZERO


@pytest.mark.parametrize("hidden", [[], [16, 24]])
def test_gates_of_other_depth(tiny, toy_tasks, run_sequence, hidden):
    """Gates with one and with three layers are closed on old inputs and trained like those with two."""
    results = run_sequence(
        tiny, EXACT | {"gate_hidden": hidden}, toy_tasks[:2], probe=gates_and_features(tiny, toy_tasks)
    )
    assert results[1].probes[1][0]["a"][:, -1].max() <= ZERO
    moved = [name for name in results[1].trainable if name.startswith("extra.gates.1.")]
    assert len(moved) == len(hidden) + 2


@pytest.mark.parametrize(
    "options",
    [
        {"gate_score": "dot"},
        {"gate_squash": "clipped_abs"},
        {"gate_squash": "abs_sin"},
        {"gate_pooling": "max"},
        {"key_init": "random"},
        {"over": "inf_lora", "key_init": "random"},
        {"over": "inf_lora", "design": "random_projected"},
        {"gate_chunks": 2, "over": "inf_lora", "layer_chunks": 2},
        {"over": "inf_lora", "energy_power": 2},
        {"gate_energy_power": 2},
        {"gate_input": "raw"},
        {"gate_input": "rms"},
        {"gate_input": "rms", "gate_chunks": 4, "gate_squash": "abs_sin"},
        {"detach_old": True},
    ],
    ids=str,
)
def test_every_option_keeps_the_zero(tiny, toy_tasks, run_sequence, options):
    """Scores, squashing functions, pooling, keys, chunks: the new gate is 0 on old inputs after training under each."""
    results = run_sequence(tiny, EXACT | options, toy_tasks[:2], probe=gates_and_features(tiny, toy_tasks))
    tolerance = ZERO * (10 if options.get("gate_score") == "dot" else 1)
    assert results[1].probes[1][0]["a"][:, -1].max() <= tolerance
    assert results[1].probes[1][1]["a"][:, -1].max() > 1e-3
