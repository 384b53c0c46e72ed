"""GainLoRA: new gates are closed on the inputs of earlier tasks and stay closed under real training; what breaks that.

The engine is DeepSpeed's with AdamW, as in a real run. With gate_epsilon = 1 and few distinct inputs the subspaces are
exact, so every guarantee is a matter of round-off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from raycl.adapters.branches import kaiming
from raycl.methods.common.base import StageInfo
from raycl.methods.gain_lora import GATE, GainLora, GainLoraParams
from raycl.methods.inf_lora import BASIS, InfLora, InfLoraParams, stored_basis
from raycl.state.stage_state import StagePart, StageState
from raycl.train.module import StageModule
from raycl.train.passes import DataPass
from raycl.train.workers import Workers
from tests.kit.cases import (
    CASES,
    HIDDEN,
    SHAPE,
    answer_logits,
    batch_of,
    encoder_of,
    largest_difference,
    make_method,
    probe_logits,
    served_logits,
    serving,
)

EXACT: dict[str, Any] = SHAPE | {
    "name": "gain_lora",
    "gate_hidden": [HIDDEN],
    "gate_epsilon": 1.0,
    "epsilon": 0.95,
    "dropout": 0.0,
}
OVERS = ("o_lora", "inf_lora")
ZERO = 1e-5
"""Round-off of fp32 in a gate whose score is exactly 0."""


def gates_and_features(model: Any, tasks: list[Any]) -> Callable[..., list[dict[str, Any]]]:
    """A probe: per task, the gate values (examples, branches) and each gate's features p_0..p_L on its test inputs."""

    def probe(module: Any, encoder: Any) -> list[dict[str, Any]]:
        seen = []
        for task in tasks:
            inputs = batch_of(model, task.test)
            module.method.condition(inputs)
            p0 = module.method.pooled(inputs)
            features = [gate.features(p0) for gate in module.method.gates]
            scores = [f[-1] @ gate.key().T for f, gate in zip(features, module.method.gates, strict=True)]
            seen.append({"a": module.method.weights.clone(), "features": features, "scores": scores})
        return seen

    return probe


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(request, tiny, tiny_bf16):
    """Base weights in fp32, and in bf16 under autocast."""
    return tiny if request.param == "fp32" else tiny_bf16


@pytest.fixture(scope="module", params=OVERS)
def over(request):
    """The LoRA part."""
    return request.param


@pytest.fixture(scope="module")
def exact(model, over, toy_tasks, run_sequence):
    """Three stages with exact subspaces; probes are gates and features on all tasks, at the start and the end."""
    return run_sequence(model, EXACT | {"over": over}, toy_tasks, epochs=10, probe=gates_and_features(model, toy_tasks))


@pytest.fixture(scope="module")
def first(tiny, toy_tasks, run_stage):
    """The first stage over O-LoRA, in fp32."""
    return run_stage(tiny, EXACT, toy_tasks)


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
    again = type(toy_tasks[0])("again", *list(vars(toy_tasks[0]).values())[1:])
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


# What the gate reads, and where its key points.


def mean_embeddings(model: Any, inputs: Any) -> torch.Tensor:
    """The mean embedding of each prompt's own tokens, example by example."""
    table = model.backbone.model.get_input_embeddings().weight
    rows = zip(inputs.ids, inputs.prompt_mask.bool(), strict=True)
    return torch.stack([table[ids[keep]].mean(dim=0) for ids, keep in rows])


def test_gates_read_the_pooled_prompt_raw_or_at_unit_rms(tiny, family, toy_tasks, run_stage):
    """Gate values from p_0 worked out token by token; `auto` is rms for the decoder-only model and raw for the other."""
    params = EXACT | {"gate_hidden": [], "over": "o_lora"}
    inputs = batch_of(tiny, toy_tasks[0].test)
    plain = mean_embeddings(tiny, inputs)
    read = {"raw": plain, "rms": plain * plain.shape[1] ** 0.5 / plain.norm(dim=1, keepdim=True)}
    read["auto"] = read["rms" if family == "llama" else "raw"]
    seen = {}
    for how, p0 in read.items():
        state = run_stage(tiny, params | {"gate_input": how}, toy_tasks, epochs=1).state
        with serving(tiny, params | {"gate_input": how}, state) as method:
            method.condition(inputs)
            seen[how] = method.weights[:, 0]
        layer, key = (state.last.tensors[f"{GATE}{level}"] for level in (0, 1))
        p1 = torch.nn.functional.silu(p0 @ layer.T)
        expected = torch.tanh(2 * torch.nn.functional.cosine_similarity(p1, key)).abs()
        assert torch.allclose(seen[how], expected, atol=1e-5)
    assert (seen["raw"] - seen["rms"]).abs().max() > 1e-3


def aim(model: Any, method: Any, state: StageState, task: Any) -> torch.Tensor:
    """Install a gate and aim its key by the data pass before training; its values (examples,) on the task's train rows."""
    method.install(model.backbone, state)
    try:
        moments = method.collect("before")
        encoder = encoder_of(model)
        DataPass(StageModule(model.backbone, method), encoder, 4, Workers()).run(encoder.encode(task.train), moments)
        method.initialise(moments)
        method.condition(batch_of(model, task.train))
        return method.weights[:, -1].detach().clone()
    finally:
        method.remove()


@pytest.mark.parametrize("how", ["raw", "rms"])
def test_chunked_keys_start_open_whatever_the_seed(tiny, toy_tasks, how):
    """Four blocks, whose eigenvectors have arbitrary signs: their parts add up on the new task's inputs, for every draw of
    the gate. Summed as they come, some of these keys start below 0.45."""
    params = EXACT | {"gate_hidden": [50], "gate_chunks": 4, "gate_input": how}
    starts = [aim(tiny, make_method(params, seed=seed), StageState(), toy_tasks[0]).mean().item() for seed in range(8)]
    assert min(starts) > 0.65


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_key_by_an_svd_of_the_features_outside_the_known_span(tiny, first, toy_tasks, chunks):
    """k_t, block by block: the leading right singular vector of the new p_L without their part in M_L, turned towards the
    mean of p_L; all blocks alike, of norm sqrt(d / 3)."""
    method = make_method(EXACT | {"gate_chunks": chunks}, 2)
    state = blockwise(first.state, "gate_basis/2", chunks)
    aim(tiny, method, state, toy_tasks[1])
    p0 = method.pooled(batch_of(tiny, toy_tasks[1].train))
    rows = method.gate.features(p0)[-1].detach().double()
    basis = stored_basis(state, "gate_basis/2", 48)
    outside = rows - rows @ basis @ basis.T
    blocks = []
    for block, whole in zip(outside.chunk(chunks, dim=1), rows.chunk(chunks, dim=1), strict=True):
        leading = torch.linalg.svd(block).Vh[0]
        blocks.append(leading * torch.sign(whole.mean(dim=0) @ leading))
    expected = torch.cat(blocks) * (48 / 3 / chunks) ** 0.5
    assert (method.gate.key()[0] - expected).abs().max() <= 1e-3
    assert (method.gate.key().double() @ basis).abs().max() <= ZERO


def blockwise(state: StageState, name: str, chunks: int) -> StageState:
    """A one-stage state whose basis `name` is made of columns within blocks, as a chunked stage stores them."""
    part = state.newest
    blocks = [torch.linalg.qr(block).Q[:, :2] for block in part.tensors[name].double().chunk(chunks)]
    columns = torch.block_diag(*blocks).float() if chunks > 1 else part.tensors[name]
    return StageState((StagePart(part.task, part.branch, part.tensors | {name: columns}, part.facts),))


def test_a_plain_sigmoid_starts_on_the_open_side(tiny, toy_tasks):
    """f(b) = sigmoid(b) is not even: a key turned against the mean would start the negative control below 0.5."""
    for seed in range(8):
        method = make_method(EXACT | {"gate_squash": "sigmoid"}, seed=seed)
        assert aim(tiny, method, StageState(), toy_tasks[0]).mean() > 0.55


def test_layers_and_gates_have_an_energy_of_their_own(tiny, toy_tasks, run_stage):
    """epsilon and energy_power move the layer bases alone, gate_epsilon and gate_energy_power the gate's alone; squared
    eigenvalues need fewer columns."""
    base = EXACT | {"over": "inf_lora", "epsilon": 0.9, "gate_epsilon": 0.9}
    columns = {
        name: {key: value.shape[1] for key, value in run_stage(tiny, base | change, toy_tasks).part.tensors.items()}
        for name, change in {
            "": {}, "layers": {"energy_power": 2}, "gates": {"gate_energy_power": 2},
            "less": {"epsilon": 0.5}, "less gate": {"gate_epsilon": 0.5},
        }.items()
    }  # fmt: skip

    def total(name: str, prefix: str) -> int:
        return sum(count for key, count in columns[name].items() if key.startswith(prefix))

    for layers, gates in (("layers", "gates"), ("less", "less gate")):
        assert total(layers, BASIS) < total("", BASIS) and total(layers, "gate_basis/") == total("", "gate_basis/")
        assert total(gates, "gate_basis/") < total("", "gate_basis/") and total(gates, BASIS) == total("", BASIS)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_published_settings_are_the_releases(kind):
    """Squared eigenvalues with 0.995 for layers and gates, p_0 as pooled; four blocks for Llama."""
    params = GainLoraParams.model_validate(GainLora.settings(kind, "long-4")["method"])
    assert (params.epsilon, params.energy_power) == (params.gate_epsilon, params.gate_energy_power) == (0.995, 2)
    assert params.gate_input == "raw"
    assert (params.gate_chunks, params.layer_chunks) == ((1, 1) if kind == "t5" else (4, 4))
    layers = InfLoraParams.model_validate(InfLora.settings(kind, "sni-1")["method"])
    assert (layers.epsilon, layers.energy_power) == (0.995, 2)


# GainLoRA and what it stands on.


class Open(GainLora):
    """All gates forced to 1."""

    def condition(self, inputs):
        super().condition(inputs)
        self.weights = torch.ones_like(self.weights)


class NewOpen(GainLora):
    """The new gate forced to 1, the old ones as they are."""

    def condition(self, inputs):
        super().condition(inputs)
        self.weights = torch.cat([self.weights[:, :-1], torch.ones_like(self.weights[:, -1:])], dim=1)


class FreeA(GainLora):
    """The designed down-projection replaced by a random one that old inputs do excite."""

    def initialise(self, moments):
        super().initialise(moments)
        draw = self.info.generator("free")
        self.inner.branches.set_a({path: kaiming(m.down.shape, draw) for path, m in self.inner.branches.layers.items()})


class FreeOpen(NewOpen, FreeA):
    """Neither protection."""


def build(kind: type[GainLora], params: dict[str, Any], stage: int) -> GainLora:
    """A variant for one stage of the toy sequence."""
    return kind(GainLoraParams.model_validate(params), StageInfo(stage, 3, f"toy{stage}", 0))


def test_with_open_gates_it_is_the_method_it_stands_on(tiny, toy_tasks, run_stage, run_sequence, over):
    """Gates forced to 1 train bit for bit the branches of O-LoRA or InfLoRA, and InfLoRA's bases, over three tasks."""
    shared = {"lambda1": 0.1, "lambda2": 0.01, "epsilon": 0.9}
    kept = ("lambda1", "lambda2") if over == "o_lora" else ("epsilon",)
    plain = run_sequence(tiny, SHAPE | {"name": over} | {name: shared[name] for name in kept}, toy_tasks)
    state = StageState()
    for stage, underlying in enumerate(plain, start=1):
        method = build(Open, EXACT | SHAPE | shared | {"over": over}, stage)
        part = run_stage(tiny, method, toy_tasks, state).part
        state = state.append(part)
        for path, a in underlying.part.branch.a.items():
            assert torch.equal(part.branch.a[path], a)
            assert torch.equal(part.branch.b[path], underlying.part.branch.b[path])
        bases = {name: value for name, value in part.tensors.items() if name.startswith(BASIS)}
        assert bases.keys() == underlying.part.tensors.keys()
        assert all(torch.equal(value, underlying.part.tensors[name]) for name, value in bases.items())


def test_either_protection_alone_keeps_old_outputs(tiny, toy_task, run_stage):
    """Over InfLoRA old logits stay when only the gate, or only the down-projection, guards them; with neither they move."""
    tasks = [toy_task(number, distinct=2, repeats=4, words=2) for number in (1, 2, 3)]
    params = EXACT | {"over": "inf_lora", "epsilon": 1.0}
    probe = probe_logits(tiny, tasks[0].test)
    first = run_stage(tiny, params, tasks, probe=probe)
    scale = max(row.abs().max().item() for row in first.probes[1])
    drift = {}
    for kind in (GainLora, NewOpen, FreeA, FreeOpen):
        result = run_stage(tiny, build(kind, params, 2), tasks, first.state, epochs=8, probe=probe)
        drift[kind] = largest_difference(result.probes[1], first.probes[1]) / scale
        overlap = max(
            (a.double() @ stored_basis(first.state, BASIS + path, 48)).abs().max().item()
            for path, a in result.part.branch.a.items()
        )
        assert overlap > 0.01 if issubclass(kind, FreeA) else overlap <= ZERO
    assert drift[GainLora] <= 1e-4
    assert drift[NewOpen] <= 1e-4
    assert drift[FreeA] <= 1e-4
    assert drift[FreeOpen] > 1e-2


def test_detach_old_changes_training_and_nothing_else(tiny, toy_tasks, run_sequence, run_stage):
    """The flag changes the second stage's gradients, not the forward pass; served states ignore it."""
    params = CASES["gain_lora_over_o"].params | {"dropout": 0.0}
    probe = probe_logits(tiny, toy_tasks[1].test)
    results = [
        run_sequence(tiny, params | {"detach_old": flag}, toy_tasks[:2], epochs=1, probe=probe)
        for flag in (False, True)
    ]
    assert largest_difference(results[0][1].probes[0], results[1][1].probes[0]) == 0
    assert results[0][1].log[0]["loss"] == results[1][1].log[0]["loss"]
    assert largest_difference(results[0][1].probes[1], results[1][1].probes[1]) > 1e-4
    method = make_method(params | {"detach_old": True}, 2)
    method.serve(tiny.backbone, results[1][1].state)
    assert not any(layer.detach_old for layer in method.inner.branches.layers.values())
    method.remove()


# One gate value per input, whatever surrounds it.


def test_gates_are_the_same_in_training_and_generation(tiny, toy_tasks, first):
    """a of a batch with answers, of the bare prompts, of one prompt alone and under more padding agree to 1e-6."""
    examples = [*toy_tasks[0].test, *toy_tasks[2].test]
    with serving(tiny, EXACT, first.state) as method:
        method.condition(batch_of(tiny, examples))
        with_answers = method.weights.clone()
        method.condition(batch_of(tiny, examples, answers=False))
        assert (method.weights - with_answers).abs().max() <= 1e-6
        for index, example in enumerate(examples):
            method.condition(batch_of(tiny, [example], answers=False))
            assert method.weights.shape == (1, 1)
            assert (method.weights - with_answers[index]).abs().max() <= 1e-6


def test_mean_padded_depends_on_the_neighbours(tiny, toy_tasks, first):
    """The released pooling gives another a once a longer prompt stands in the batch: kept for reproduction only."""
    short, long = sorted(toy_tasks[0].test, key=lambda e: len(e.prompt))[:: len(toy_tasks[0].test) - 1]
    drift = {}
    for pooling in ("mean_tokens", "mean_padded"):
        with serving(tiny, EXACT | {"gate_pooling": pooling, "gate_input": "raw"}, first.state) as method:
            method.condition(batch_of(tiny, [short], answers=False))
            alone = method.weights.clone()
            method.condition(batch_of(tiny, [short, long], answers=False))
            drift[pooling] = (method.weights[0] - alone[0]).abs().item()
    assert drift["mean_tokens"] <= 1e-6
    assert drift["mean_padded"] > 1e-5


def test_the_prompt_alone_decides_unless_told_otherwise(tiny, family, toy_tasks, first):
    """`all_input` pools a decoder-only model's answers too; an encoder-decoder's input is its prompt anyway."""
    batches = [batch_of(tiny, toy_tasks[0].test, answers=flag) for flag in (True, False)]
    with serving(tiny, EXACT | {"gate_region": "all_input"}, first.state) as method:
        values = []
        for inputs in batches:
            method.condition(inputs)
            values.append(method.weights.clone())
    differs = (values[0] - values[1]).abs().max() > 1e-4
    assert differs == (family == "llama")


def test_a_stays_what_it_was_at_prefill_in_every_decoding_step(tiny, family, toy_tasks, exact_fp32):
    """During cached generation each layer call uses the prefill's gates, and the logits are those of one full pass."""
    examples = toy_tasks[0].test
    inputs = batch_of(tiny, examples, answers=False)
    used = []
    with serving(tiny, EXACT, exact_fp32) as method, torch.no_grad():
        method.condition(inputs)
        prefill = method.weights.clone()
        method.inner.branches.mix_by(lambda layer, old, new: used.append(method.weights) or method.weights[:, None])
        out = tiny.backbone.model.generate(
            input_ids=inputs.ids, attention_mask=inputs.mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            pad_token_id=0, eos_token_id=2, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        stepwise = torch.stack(out.logits, dim=1)
        layers = len(method.inner.branches.layers)
        # An encoder runs once; the values of cross-attention are cached after the first step.
        steps = {"llama": 4 * layers, "t5": 4 + 4 * 6 + 2}
        assert len(used) == steps[family]
        assert all(torch.equal(weights, prefill) for weights in used)
        if family == "llama":
            mask = torch.cat([inputs.mask, torch.ones(len(examples), 4, dtype=torch.long)], dim=1)
            places = (mask.cumsum(dim=1) - 1).clamp(min=0)
            whole = tiny.backbone.model(input_ids=out.sequences, attention_mask=mask, position_ids=places).logits
            whole = whole[:, -5:-1]
        else:
            whole = tiny.backbone.model(
                input_ids=inputs.ids, attention_mask=inputs.mask, decoder_input_ids=out.sequences[:, :-1]
            ).logits
    assert (stepwise - whole).abs().max() <= 1e-4 * whole.abs().max()


@pytest.fixture(scope="module")
def exact_fp32(tiny, toy_tasks, run_sequence):
    """The state after two stages over O-LoRA in fp32."""
    return run_sequence(tiny, EXACT, toy_tasks[:2])[-1].state


def test_the_log_shows_the_mean_gates(tiny, toy_tasks, run_sequence):
    """The gauges hold one mean per branch, between 0 and 1, and the share of each feature space that is taken."""
    gauges = run_sequence(tiny, EXACT, toy_tasks[:2])[1].log[-1]["gauges"]
    assert {name for name in gauges if name.startswith("gate_mean")} == {"gate_mean/1", "gate_mean/2"}
    assert gauges["gate_basis_share/0"] == pytest.approx(4 / 48)
    assert gauges["gate_basis_share/1"] == pytest.approx(4 / HIDDEN)
    assert gauges["gate_mean/2"] > 0.1


def test_an_unconditioned_model_is_refused(tiny, toy_tasks, first):
    """A forward pass before `condition` says what is missing."""
    with serving(tiny, EXACT, first.state), pytest.raises(RuntimeError, match="conditioned"):
        inputs = batch_of(tiny, toy_tasks[0].test)
        tiny.backbone.model(input_ids=inputs.ids, labels=inputs.labels)


def test_a_served_state_of_one_stage_equals_its_training(tiny, toy_tasks, first):
    """T = 1: one gate, one branch, bare prompt logits finite and moved by the branch."""
    served = served_logits(tiny, EXACT, first.state, toy_tasks[0].test)
    bare = answer_logits(tiny, None, batch_of(tiny, toy_tasks[0].test))
    assert largest_difference(served, bare) > 0.1
