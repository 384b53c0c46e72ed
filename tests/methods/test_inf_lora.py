"""InfLoRA: designed down-projections, and the input subspaces behind them."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from raycl.adapters.stacked_lora import CURRENT
from raycl.methods.common.lora import LoraMethod
from raycl.methods.inf_lora import BASIS, stored_basis, threshold
from raycl.state.stage_state import StageState
from raycl.testing.case import ADAPTED
from raycl.testing.probes import (
    answer_logits,
    batch_of,
    encoder_of,
    largest_difference,
    make_method,
    probe_logits,
    served_logits,
)
from raycl.train.module import StageModule
from raycl.train.passes import DataPass
from raycl.train.workers import Workers
from tests.kit.cases import SHAPE

PARAMS = SHAPE | {"name": "inf_lora", "epsilon": 0.9, "dropout": 0.0}
EXACT = PARAMS | {"epsilon": 1.0}
DESIGNS = ({"design": "svd"}, {"design": "random_projected"}, {"design": "svd", "layer_chunks": 2})


@pytest.fixture(scope="module")
def small_tasks(toy_task):
    """Two prompts per task: their tokens span few of the 48 input dimensions, so exact subspaces leave room."""
    return [toy_task(number, distinct=2, repeats=4, words=2) for number in (1, 2, 3)]


@pytest.fixture(scope="module", params=DESIGNS, ids=lambda d: "-".join(map(str, d.values())))
def design(request):
    """The ways to make A_t."""
    return request.param


@pytest.fixture(scope="module")
def sequence(tiny, toy_tasks, run_sequence, design):
    """Three stages of a design."""
    return run_sequence(tiny, PARAMS | design, toy_tasks)


def layer_bases(state: StageState, family: str) -> dict[str, torch.Tensor]:
    """The basis of every adapted layer after a state."""
    return {path: stored_basis(state, BASIS + path, 48) for path in ADAPTED[family]}


def test_down_projections_lie_outside_the_old_inputs(sequence, family):
    """A_t M = 0 within 1e-5 and M^T M = I, for every layer and every stage after the first."""
    for earlier, later in pairwise(sequence):
        for path, basis in layer_bases(earlier.state, family).items():
            assert basis.shape[1] > 0
            assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() <= 1e-5
            assert (later.part.branch.a[path].double() @ basis).abs().max() <= 1e-5


def test_down_projections_are_scaled_orthonormal_rows(tiny, toy_tasks, run_stage):
    """The designed A_t has A_t A_t^T = I / 3, with one block and with two: rows as long as Kaiming's on average."""
    for chunks in (1, 2):
        part = run_stage(tiny, PARAMS | {"layer_chunks": chunks}, toy_tasks).part
        for a in part.branch.a.values():
            assert (a @ a.T - torch.eye(len(a)) / 3).abs().max() <= 1e-5


def test_down_projections_do_not_train(sequence):
    """A_t is bit for bit what was designed; B_t moves in every layer."""
    for result in sequence:
        for path, a in result.part.branch.a.items():
            assert torch.equal(a, result.before[f"model.{path}.lora_A.{CURRENT}.weight"])
            assert result.part.branch.b[path].any()


def test_designed_rows_are_the_leading_new_directions(tiny, family, toy_tasks, run_stage):
    """Stage 2's A_t catches as much of the new inputs as any 4 directions outside M can, by their SVD."""
    first = run_stage(tiny, PARAMS, toy_tasks)
    seen = {}

    def probe(module, encoder):
        return {
            path: module.backbone.model.get_submodule(path).lora_A[CURRENT].weight.clone() for path in ADAPTED[family]
        }

    second = run_stage(tiny, PARAMS, toy_tasks, first.state, probe=probe)
    path = ADAPTED[family][-1] if family == "llama" else "encoder.block.1.layer.0.SelfAttention.v"
    rows = inputs_of(tiny, first.state, path, toy_tasks[1].train, seen)
    basis = layer_bases(first.state, family)[path].float()
    energies = torch.linalg.svdvals(rows - rows @ basis @ basis.T) ** 2
    a = second.probes[0][path]
    assert (3 * (rows @ a.T) ** 2).sum() == pytest.approx(energies[:4].sum().item(), rel=1e-4)
    assert energies[4] > 1e-3 * energies[0]


def inputs_of(model, state, path, examples, seen):
    """All real inputs (n, d_in) of a layer under a served state, by a hook of its own."""
    method = make_method(PARAMS, max(1, state.stage))
    method.serve(model.backbone, state)
    layer = model.backbone.model.get_submodule(path)
    handle = layer.register_forward_pre_hook(lambda module, args: seen.__setitem__("x", args[0]))
    try:
        inputs = batch_of(model, examples)
        answer_logits(model, method, inputs)
    finally:
        handle.remove()
        method.remove()
    return seen["x"][inputs.mask.bool()]


def test_blocks_of_a_designed_row_add_up_on_the_mean_input(tiny, family, toy_tasks, run_stage):
    """With blocks, every block of a row answers to the mean input with the same sign, so that none cancels another."""
    path = ADAPTED[family][0] if family == "llama" else "encoder.block.0.layer.0.SelfAttention.q"
    result = run_stage(tiny, PARAMS | {"layer_chunks": 4}, toy_tasks)
    rows = inputs_of(tiny, result.state, path, toy_tasks[0].train, {})
    mean, a = rows.mean(dim=0), result.part.branch.a[path]
    parts = torch.stack([block @ m for block, m in zip(a.chunk(4, dim=1), mean.chunk(4), strict=True)])
    assert parts.min() >= -1e-3 * mean.norm()
    assert (parts.sum(dim=0) - parts.abs().sum(dim=0)).abs().max() <= 1e-2 * mean.norm()
    assert parts[:, 0].min() > 0


def test_random_design_is_a_projected_draw(tiny, toy_tasks, run_sequence, run_stage):
    """random_projected: plain Kaiming at stage 1 (SinLoRA's draw), later rows of norm 1/sqrt(3), no pass before."""
    random = PARAMS | {"design": "random_projected"}
    results = run_sequence(tiny, random, toy_tasks[:2])
    plain = run_stage(tiny, SHAPE | {"name": "sin_lora"}, toy_tasks)
    for path, a in results[0].part.branch.a.items():
        assert torch.equal(a, plain.before[f"model.{path}.lora_A.{CURRENT}.weight"])
        norms = results[1].part.branch.a[path].norm(dim=1)
        assert (norms - 3**-0.5).abs().max() <= 1e-5
    phases = [{e["phase"] for e in r.events if e["event"] == "phase"} for r in results]
    assert phases == [{"data pass after training"}] * 2


def test_branch_is_silent_on_old_inputs_whatever_b_is(sequence, tiny, family, design):
    """For x in span(M) the new branch gives 0, with any B, within 1e-5 |x|."""
    state = sequence[1].state
    method = make_method(PARAMS | design, 3)
    method.serve(tiny.backbone, sequence[2].state)
    try:
        for path, basis in layer_bases(state, family).items():
            layer = method.branches.layers[path]
            x = (torch.randn(6, basis.shape[1], dtype=torch.float64) @ basis.T).float()
            x = x / x.norm(dim=1, keepdim=True)
            layer.lora_B[CURRENT].weight.data.normal_()
            new = layer.lora_B[CURRENT](layer.lora_A[CURRENT](x)) * layer.scaling[CURRENT]
            assert new.abs().max() <= 1e-4 * layer.lora_B[CURRENT].weight.norm() / 10
            other = torch.randn(6, 48)
            assert layer.lora_A[CURRENT](other).abs().max() > 0.1
    finally:
        method.remove()


def test_with_all_energy_kept_old_outputs_do_not_move(tiny, family, small_tasks, run_sequence):
    """epsilon = 1 on few inputs: tasks 2 and 3 leave task 1's logits alone (1e-4 of the largest), and are learned."""
    examples = small_tasks[0].test
    results = run_sequence(tiny, EXACT, small_tasks, epochs=6, probe=probe_logits(tiny, examples))
    for stage in (1, 2):
        logits = results[stage].probes[1]
        scale = max(row.abs().max().item() for row in logits)
        assert largest_difference(logits, results[0].probes[1]) <= 1e-4 * scale
        assert results[stage].log[-1]["loss"] < results[stage].log[0]["loss"]


def test_moments_are_those_of_real_positions(tiny, family, toy_tasks):
    """The pass's moment of each layer is X^T X / n over real tokens; cross-attention values read encoder outputs."""
    examples = toy_tasks[0].train[:7]
    assert len({len(e.prompt.split()) for e in examples}) > 1
    method = make_method(PARAMS)
    seen: dict[str, torch.Tensor] = {}
    outputs = {}
    method.install(tiny.backbone, StageState())
    try:
        moments = method.collect("before")
        module, encoder = StageModule(tiny.backbone, method), encoder_of(tiny)
        DataPass(module, encoder, 3, Workers()).run(encoder.encode(examples), moments)
        owners = method.inputs.owners()
        method.inputs.release()
        for path, layer in method.branches.layers.items():
            layer.register_forward_pre_hook(lambda m, args, path=path: seen.__setitem__(path, args[0].detach()))
        if family == "t5":
            stack = tiny.backbone.model.encoder
            handle = stack.register_forward_hook(lambda m, args, out: outputs.__setitem__("encoder", out[0].detach()))
        inputs = batch_of(tiny, examples)
        answer_logits(tiny, method, inputs)
    finally:
        if family == "t5":
            handle.remove()
        method.remove()
    assert owners.keys() == set(ADAPTED[family])
    for path, owner in owners.items():
        assert torch.equal(seen[path], seen[owner])
        real = inputs.mask.bool() if reads_source(path) else inputs.labels != -100
        rows = seen[path][real].double()
        expected = rows.T @ rows / len(rows)
        assert moments[owner].count.item() == len(rows)
        assert (moments[owner].value - expected).abs().max() <= 1e-5 * expected.abs().max()
        if path.endswith("EncDecAttention.v"):
            encoded = outputs["encoder"][inputs.mask.bool()].double()
            by_hand = encoded.T @ encoded / len(encoded)
            assert (moments[path].value - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    shared = {path for path, owner in owners.items() if path != owner}
    assert shared == {path for path in ADAPTED[family] if path.endswith(("self_attn.v_proj", "SelfAttention.v"))}


def reads_source(path: str) -> bool:
    """Whether a layer's input positions are those of the prompt (for Llama: of the whole row)."""
    return not path.startswith("decoder.") or path.endswith("EncDecAttention.v")


def test_shared_inputs_share_columns(sequence, family):
    """q and v of a self-attention have one stored basis; the value layer finds it under its partner."""
    for path, basis in layer_bases(sequence[-1].state, family).items():
        alone = BASIS + path in sequence[-1].part.tensors
        assert alone == (not path.endswith(("self_attn.v_proj", "SelfAttention.v")))
        if not alone:
            partner = path.replace("v_proj", "q_proj") if family == "llama" else path[:-1] + "q"
            assert torch.equal(basis, layer_bases(sequence[-1].state, family)[partner])


@pytest.mark.parametrize(
    "design", [one for one in DESIGNS if "layer_chunks" not in one], indirect=True
)  # blocks count apart
def test_bases_hold_the_energy_of_their_task(sequence, tiny, family, toy_tasks, design):
    """After a stage M captures at least epsilon_t of the layer inputs' energy under the trained model."""
    for path in (ADAPTED[family][0], ADAPTED[family][-1]):
        if not reads_source(path):
            continue
        for stage, result in enumerate(sequence, start=1):
            rows = inputs_of(tiny, result.state, path, toy_tasks[stage - 1].train, {}).double()
            basis = layer_bases(result.state, family)[path]
            rest = rows - rows @ basis @ basis.T
            assert 1 - (rest**2).sum() / (rows**2).sum() >= threshold(0.9, stage, 15) - 1e-6


def test_threshold_rises_to_1():
    """epsilon_t = epsilon + (1 - epsilon) (t - 1) / N, never above 1."""
    assert threshold(0.9, 1, 15) == 0.9
    assert threshold(0.9, 4, 15) == pytest.approx(0.92)
    assert threshold(0.9, 16, 15) == threshold(0.9, 99, 15) == 1.0


@pytest.mark.parametrize(
    ("changes", "stage", "eigenvalues", "columns"),
    [
        ({"epsilon": 0.75}, 1, [6.0, 3.0, 1.0, 0.0], 2),  # 9 of 10
        ({"epsilon": 0.75, "energy_power": 2}, 1, [6.0, 3.0, 1.0, 0.0], 1),  # 36 of 46
        ({"epsilon": 0.55, "horizon": 2}, 1, [6.0, 3.0, 1.0, 0.0], 1),
        ({"epsilon": 0.55, "horizon": 2}, 2, [6.0, 3.0, 1.0, 0.0], 2),  # 0.775
        ({"epsilon": 0.55, "horizon": 2}, 3, [6.0, 3.0, 1.0, 0.0], 3),  # 1
        ({"epsilon": 0.7}, 1, [6.0, 0.0, 1.0, 1.0], 1),  # 6 of 8
        ({"epsilon": 0.7, "layer_chunks": 2}, 1, [6.0, 0.0, 1.0, 1.0], 3),  # 6 of 6, and 2 of 2
    ],
)
def test_settings_of_a_basis_by_hand(changes, stage, eigenvalues, columns):
    """Energy, its power, the threshold that rises from stage to stage, and blocks decide how many columns a stage adds."""
    method = make_method({"name": "inf_lora", "horizon": 15} | changes, stage)
    method.inputs = SimpleNamespace(owners=lambda: {"x": "x"}, release=lambda: None)
    method.bases = {"x": torch.zeros(4, 0, dtype=torch.float64)}
    method.branch = lambda: None
    moment = SimpleNamespace(value=torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)))
    assert method.consolidate({"x": moment}).tensors[BASIS + "x"].shape == (4, columns)


def test_a_task_on_old_inputs_is_told_and_harms_nothing(tiny, family, toy_task, run_sequence):
    """The same inputs again leave no direction of their own: a warning names the layer, and A_t still has its scaled
    orthonormal rows outside span(M)."""
    tasks = [toy_task(1, distinct=2), toy_task(1, distinct=2)]
    renamed = [tasks[0], type(tasks[1])("again", *list(vars(tasks[1]).values())[1:])]
    with pytest.warns(UserWarning, match="earlier tasks fill the input space"):
        results = run_sequence(tiny, EXACT, renamed, lr=1e-9, epochs=1)
    for path, basis in layer_bases(results[0].state, family).items():
        a = results[1].part.branch.a[path]
        assert (a.double() @ basis).abs().max() <= 1e-5
        assert (a @ a.T - torch.eye(len(a)) / 3).abs().max() <= 1e-5


def test_serving_needs_no_pass(sequence, tiny, toy_tasks, design):
    """A served state is plain IncLoRA arithmetic: W + s sum B_i A_i merged into the weights gives the same logits."""
    state = sequence[-1].state
    examples = toy_tasks[1].test
    served = served_logits(tiny, PARAMS | design, state, examples)
    weights = {path: tiny.backbone.model.get_submodule(path).weight for path in state.last.branch.a}
    kept = {path: weight.data.clone() for path, weight in weights.items()}
    try:
        for path, weight in weights.items():
            weight.data += sum(b.b[path] @ b.a[path] * (b.alpha / b.rank) for b in state.branches)
        merged = answer_logits(tiny, None, batch_of(tiny, examples))
    finally:
        for path, weight in weights.items():
            weight.data.copy_(kept[path])
    assert largest_difference(served, merged) <= 1e-4 * max(row.abs().max().item() for row in merged)
    assert issubclass(type(make_method(PARAMS)), LoraMethod)


def test_passes_read_as_many_tokens_as_a_layer_is_wide(tiny, toy_tasks, run_stage, monkeypatch):
    """`tokens_per_dim`: both passes read rows until they have 48 tokens; the last row may go over. None reads all."""
    seen = []
    run = DataPass.run

    def counted(self, examples, moments, progress):
        seen.append([len(row.prompt) + len(row.answer) for row in examples])
        run(self, examples, moments, progress)

    monkeypatch.setattr(DataPass, "run", counted)
    for each in (1, None):
        run_stage(tiny, PARAMS | {"tokens_per_dim": each}, toy_tasks)
    before, after, all_before, all_after = seen
    assert before == after and all_before == all_after
    assert sum(before) >= 48 > sum(before) - max(before) and len(before) < len(all_before)
