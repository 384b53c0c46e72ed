"""What GainLoRA's gates read, where their keys point, and that a gate value belongs to its input alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raycl.methods.gain_lora import GATE, GainLora, GainLoraParams
from raycl.methods.inf_lora import BASIS, InfLora, InfLoraParams, stored_basis
from raycl.state.stage_state import StagePart, StageState
from raycl.testing.probes import (
    answer_logits,
    batch_of,
    encoder_of,
    largest_difference,
    make_method,
    served_logits,
    serving,
)
from raycl.train.module import StageModule
from raycl.train.passes import DataPass
from raycl.train.workers import Workers
from tests.kit.cases import HIDDEN
from tests.kit.gates import EXACT, ZERO

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
