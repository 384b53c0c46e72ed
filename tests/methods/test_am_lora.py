"""AM-LoRA: the attention by hand and branch by branch, what the variants train, and the L1 term."""

from __future__ import annotations

import math

import pytest
import torch

from raycl.adapters.selectors import Selectors, attention
from raycl.adapters.stacked_lora import StackedLora
from raycl.methods.am_lora import AmLora, AmLoraParams
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.case import ADAPTED
from raycl.testing.probes import make_method, same_part, serving
from tests.kit.cases import CASES, SHAPE

PARAMS = SHAPE | {"name": "am_lora", "dropout": 0.0}
AR, NR = CASES["am_lora_ar"].params, CASES["am_lora_nr"].params


class Layer:
    """A stand-in for a stacked layer: s B_1 = (2, 0), rank 1, and B_2 = (0, 1)."""

    frozen_b = torch.tensor([[2.0], [0.0]])
    frozen_ranks = (1,)
    up = torch.tensor([[0.0], [1.0]])
    per_column, per_branch = StackedLora.per_column, StackedLora.per_branch


def random_state(tiny, tasks: int, selectors: float = 0.05) -> StageState:
    """Random branches and selectors of `tasks` stages on the tiny model."""
    parts = []
    layers = {
        path: module
        for path, module in tiny.backbone.model.named_modules()
        if path.rsplit(".", 1)[-1] in tiny.backbone.targets
    }
    for task in range(1, tasks + 1):
        a = {path: torch.randn(4, one.in_features) / one.in_features**0.5 for path, one in layers.items()}
        b = {path: torch.randn(one.out_features, 4) for path, one in layers.items()}
        rows = {f"selector/{path}": selectors * torch.randn(task + 1, one.out_features) for path, one in layers.items()}
        for values in rows.values():
            values[0] = 0
        parts.append(StagePart(f"task{task}", Branch(4, 16.0, a, b), rows))
    return StageState(tuple(parts))


def branch_outputs(state: StageState, path: str, x: torch.Tensor) -> list[torch.Tensor]:
    """u_1..u_T of a module, one after the other."""
    return [4.0 * x @ branch.a[path].T @ branch.b[path].T for branch in state.branches]


def test_attention_by_hand():
    """h_1 = 3 and s h_2 = 2 give u_1 = (6, 0) and u_2 = (0, 2); z = (0, 3, -2); g = softmax(z) without its first entry."""
    selectors = torch.tensor([[0.5, 1.0], [7.0, -1.0]])
    weights = attention(Layer(), selectors, torch.tensor([[[3.0]]]), torch.tensor([[[2.0]]]))
    total = 1 + math.exp(3) + math.exp(-2)
    assert weights.shape == (1, 1, 2)
    assert weights.flatten().tolist() == pytest.approx([math.exp(3) / total, math.exp(-2) / total], abs=1e-6)
    assert weights.flatten().tolist() == pytest.approx([0.946499, 0.006377], abs=1e-6)


def test_the_first_stage_is_a_sigmoid():
    """Two branches, one of them zero: g_1 = sigmoid(w_1 . u_1) = sigmoid(-2)."""
    weights = attention(Layer(), torch.tensor([[7.0, -1.0]]), None, torch.tensor([[[2.0]]]))
    assert weights.item() == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)


def test_the_zero_branch_has_a_score_of_its_own():
    """z_0 = 0.5 stands beside z = (3, -2) in the softmax; at 30 nothing of the branches is used."""
    selectors, old, new = torch.tensor([[0.5, 1.0], [7.0, -1.0]]), torch.tensor([[[3.0]]]), torch.tensor([[[2.0]]])
    weights = attention(Layer(), selectors, old, new, torch.tensor([0.5]))
    total = math.exp(0.5) + math.exp(3) + math.exp(-2)
    assert weights.flatten().tolist() == pytest.approx([math.exp(3) / total, math.exp(-2) / total], abs=1e-6)
    assert attention(Layer(), selectors, old, new, torch.tensor([30.0])).max() < 1e-11
    assert torch.equal(attention(Layer(), selectors, old, new, torch.zeros(1)), attention(Layer(), selectors, old, new))


def test_attention_is_fp32_under_autocast():
    """bf16 features and bf16 stacked factors: the scores and the softmax are fp32."""
    layer = Layer()
    layer.frozen_b = layer.frozen_b.bfloat16()
    old, new = torch.tensor([[[3.0]]]).bfloat16(), torch.tensor([[[2.0]]]).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = attention(layer, torch.tensor([[0.5001, 1.0], [7.0, -1.0]]), old, new)
    assert weights.dtype == torch.float32
    total = 1 + math.exp(3.0006) + math.exp(-2)
    assert weights.flatten().tolist() == pytest.approx([math.exp(3.0006) / total, math.exp(-2) / total], abs=1e-6)


def test_every_layer_follows_the_formula(tiny, family):
    """y = W x + sum_i g_i u_i with g from an explicit softmax over w_i . u_i, the zero branch among them."""
    state = random_state(tiny, 3)
    with serving(tiny, PARAMS, state) as method:
        for path, layer in method.branches.layers.items():
            x = torch.randn(2, 5, layer.in_features)
            outputs = [torch.zeros(2, 5, layer.out_features), *branch_outputs(state, path, x)]
            rows = state.last.tensors[f"selector/{path}"]
            scores = torch.stack([(u * w).sum(dim=-1) for u, w in zip(outputs, rows, strict=True)], dim=-1)
            weights = scores.softmax(dim=-1)
            expected = layer.get_base_layer()(x) + sum(weights[..., [i]] * u for i, u in enumerate(outputs))
            with torch.no_grad():
                assert torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-4)
                old = x @ layer.frozen_a.T
                ours = layer.mixer(layer, old, layer.lora_A["branch"](x) * layer.scaling["branch"])
            assert torch.allclose(ours, weights[..., 1:], atol=1e-5)
            assert torch.allclose(ours.sum(dim=-1) + weights[..., 0], torch.ones(2, 5), atol=1e-5)
            assert (ours[:, 0] - ours[:, 1]).abs().max() > 1e-3


def test_a_stored_zero_logit_is_served(tiny, family):
    """y = W x + sum_i g_i u_i with z_0 of the layer in the softmax, another one in every layer; `fixed` has none."""
    plain = random_state(tiny, 2)
    logits = {path: torch.tensor([0.3 * index - 1.0]) for index, path in enumerate(ADAPTED[family])}
    last = plain.newest
    tensors = last.tensors | {f"zero_logit/{path}": value for path, value in logits.items()}
    state = StageState((plain.parts[0], StagePart(last.task, last.branch, tensors)))
    with serving(tiny, PARAMS | {"zero_logit": "trained"}, state) as method:
        for path, layer in method.branches.layers.items():
            x = torch.randn(2, 5, layer.in_features)
            outputs = branch_outputs(state, path, x)
            rows = last.tensors[f"selector/{path}"][1:]
            scores = [(u * w).sum(dim=-1) for u, w in zip(outputs, rows, strict=True)]
            weights = torch.stack([logits[path].expand(2, 5), *scores], dim=-1).softmax(dim=-1)[..., 1:]
            expected = layer.get_base_layer()(x) + sum(weights[..., [i]] * u for i, u in enumerate(outputs))
            with torch.no_grad():
                assert torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-4)
        assert not method.selectors.zero.requires_grad
    with serving(tiny, PARAMS, plain) as method:
        assert method.selectors.zero is None


def test_the_zero_logit_trains_at_every_stage(tiny, family, toy_tasks, run_sequence):
    """Under both variants it starts at 0, goes on from the last stage, moves at each, and is in the part and the log."""
    for params in (AR, NR):
        last = dict.fromkeys(ADAPTED[family], torch.zeros(1))
        for result in run_sequence(tiny, params | {"zero_logit": "trained"}, toy_tasks):
            start = torch.cat([last[path] for path in result.part.branch.a])
            assert torch.equal(result.before["extra.selectors.zero"], start)
            last = {path: result.part.tensors[f"zero_logit/{path}"] for path in result.part.branch.a}
            assert (torch.cat(list(last.values())) - start).abs().max() > 1e-4
            assert result.log[-1]["gauges"]["zero_logit"] != 0
    fixed = run_sequence(tiny, NR, toy_tasks[:1])[0]
    assert not any(name.startswith("zero_logit/") for name in fixed.part.tensors)


def test_the_zero_logit_is_no_selector_to_the_l1_term(tiny):
    """The term and its gradient leave it alone."""
    method = make_method(PARAMS | {"zero_logit": "trained", "selector_init": "random", "l1": 0.3})
    method.install(tiny.backbone, StageState())
    try:
        expected = method.selectors.rows().abs().sum()
        term = method.penalties(None)["selectors"].raw
        assert term == expected
        term.backward()
        assert method.selectors.zero.grad is None
    finally:
        method.remove()


def test_without_selectors_all_branches_count_alike(tiny):
    """w = 0: y = W x + (1 / (t + 1)) sum u_i."""
    state = random_state(tiny, 3, selectors=0.0)
    with serving(tiny, PARAMS, state) as method:
        for path, layer in method.branches.layers.items():
            x = torch.randn(2, 5, layer.in_features)
            with torch.no_grad():
                delta = layer(x) - layer.get_base_layer()(x)
            assert torch.allclose(delta, sum(branch_outputs(state, path, x)) / 4, atol=1e-4, rtol=1e-4)


def test_a_new_branch_rescales_the_old_ones(tiny):
    """At the start of stage 3 every old weight is its former value times D / (D + 1), D = e^0 + e^z_1 + e^z_2."""
    state = random_state(tiny, 2)
    path = ADAPTED["llama" if not tiny.backbone.encoder_decoder else "t5"][0]
    method = make_method(PARAMS, 3)
    method.install(tiny.backbone, state)
    try:
        layer = method.branches.layers[path]
        x = torch.randn(1, 4, layer.in_features)
        with torch.no_grad():
            ours = layer.mixer(layer, x @ layer.frozen_a.T, layer.lora_A["branch"](x) * layer.scaling["branch"])
        rows = state.last.tensors[f"selector/{path}"][1:]
        scores = [(u * w).sum(dim=-1) for u, w in zip(branch_outputs(state, path, x), rows, strict=True)]
        scores = torch.stack([torch.zeros(1, 4), *scores], dim=-1)
        before, total = scores.softmax(dim=-1)[..., 1:], scores.exp().sum(dim=-1, keepdim=True)
        assert torch.allclose(ours[..., :2], before * total / (total + 1), atol=1e-5)
    finally:
        method.remove()


def test_which_selectors_train(tiny, toy_tasks, run_sequence):
    """NR leaves w_1..w_(t-1) bit for bit; AR moves them; w_0 stays 0; a part holds t + 1 rows per module."""
    for params in (NR, AR):
        results = run_sequence(tiny, params, toy_tasks)
        for stage, result in enumerate(results, start=1):
            for path, b in result.part.branch.b.items():
                rows = result.part.tensors[f"selector/{path}"]
                assert rows.shape == (stage + 1, b.shape[0])
                assert not rows[0].any() and rows[stage].any()
                if stage > 1:
                    before = results[stage - 2].part.tensors[f"selector/{path}"]
                    assert torch.equal(rows[:-1], before) == (params is NR)


def test_the_variants_are_one_at_the_first_stage(tiny, toy_tasks, run_sequence):
    """One selector: nothing old to train again, with and without a random start; later they part."""
    for start in ("zeros", "random"):
        ours, theirs = (run_sequence(tiny, one | {"selector_init": start}, toy_tasks[:2]) for one in (AR, NR))
        assert same_part(ours[0].part, theirs[0].part)
        assert not same_part(ours[1].part, theirs[1].part)


def test_l1_by_hand(tiny):
    """sum over layers and w_1..w_t (w_0 = 0 adds nothing), frozen ones included; none where its weight is 0."""
    state = random_state(tiny, 2)
    expected = sum(values.abs().sum().item() for values in state.last.tensors.values())
    for variant in ("nr", "ar"):
        method = make_method(PARAMS | {"variant": variant, "l1": [0.0, 0.0, 0.3]}, 3)
        method.install(tiny.backbone, state)
        try:
            term = method.penalties(None)["selectors"]
            assert term.weight == 0.3 and term.raw.item() == pytest.approx(expected, rel=1e-5)
            term.raw.backward()
            signs = method.selectors.rows().sign()[-len(method.selectors.free) :]
            assert torch.equal(method.selectors.free.grad, signs)
        finally:
            method.remove()
    assert make_method(PARAMS | {"l1": [0.0, 0.0, 0.3]}, 2).penalties(None) == {}


def test_l1_makes_the_selectors_smaller(tiny, toy_tasks, run_stage):
    """A stage with a large lambda ends with smaller selectors; the log shows raw and weighted."""
    norms = {}
    for weight in (0.0, 0.01):
        result = run_stage(tiny, AR | {"l1": weight}, toy_tasks, epochs=4)
        norms[weight] = sum(values.abs().sum().item() for values in result.part.tensors.values())
        assert set(result.log[-1]["terms"]) == ({"selectors"} if weight else set())
        assert result.log[-1]["gauges"]["selector_norm/1"] > 0
    assert norms[0.01] < norms[0.0] / 2


def test_a_random_start_differs_from_zeros(tiny, family):
    """Uniform in +-1/sqrt(d_out), other values in every layer, w_0 still 0."""
    method = make_method(PARAMS | {"selector_init": "random"})
    method.install(tiny.backbone, StageState())
    try:
        part = method.consolidate({})
    finally:
        method.remove()
    seen = set()
    for path in ADAPTED[family]:
        rows = part.tensors[f"selector/{path}"]
        assert not rows[0].any() and rows[1].any()
        assert rows[1].abs().max() <= rows.shape[1] ** -0.5
        seen.add(rows[1, 0].item())
    assert len(seen) == len(ADAPTED[family])


def test_selectors_are_cut_into_layers():
    """Layers of different widths lie side by side; the last rows train, the others do not."""
    rows = {"a": torch.arange(6.0).view(3, 2), "b": torch.arange(9.0).view(3, 3)}
    selectors = Selectors(rows, free=1)
    assert selectors.frozen.shape == (2, 5) and selectors.free.shape == (1, 5)
    assert all(torch.equal(values, rows[path]) for path, values in selectors.by_layer().items())
    assert not Selectors(rows, free=0).free.requires_grad


def test_settings_name_every_stage():
    """The paper's lambda has one value per task of the long orders."""
    for order in ("long-4", "long-5", "long-6"):
        assert len(AmLora.settings("t5", order)["method"]["l1"]) == 15
    assert AmLora.settings("t5", "long-4")["method"]["l1"][6] == 0.3
    assert AmLora.settings("llama", "std-2")["method"]["l1"] == 1e-5


def test_a_zero_logit_that_trains_is_in_the_keys():
    """At its default it is left out, which older stages stand for."""
    keyed = [AmLoraParams.model_validate({"zero_logit": value}).at(2) for value in ("fixed", "trained")]
    assert keyed[1] == keyed[0] | {"zero_logit": "trained"} and "zero_logit" not in keyed[0]
