"""C-LoRA: the entrywise penalty by hand, its gradients, and what it does to entries that earlier branches changed."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.c_lora import CLora
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.probes import make_method, same_part
from tests.kit.cases import CASES

PARAMS = CASES["c_lora"].params | {"rank": 1, "alpha": 2, "dropout": 0.0}


class Layer:
    """A stand-in for an adapted layer: s B_old A_old = [[2, 0], [-1, 0]], B_t A_t = [[3], [1]] [[1, 5]]."""

    def __init__(self) -> None:
        self.frozen_b, self.frozen_a = torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0, 0.0]])
        self.down = torch.nn.Parameter(torch.tensor([[1.0, 5.0]]))
        self.up = torch.nn.Parameter(torch.tensor([[3.0], [1.0]]))


def by_hand(layers: int = 1, branches: int = 2, **params) -> CLora:
    """C-LoRA at stage 2 with layers of known matrices and s = 2."""
    method = make_method(PARAMS | params, 2)
    cpu = type("Anything", (), {"device": torch.device("cpu")})
    known = {"layers": {f"layer{i}": Layer() for i in range(layers)}, "backbone": cpu, "count": branches}
    method.branches = type("Anything", (), known)
    return method


def random_state(tiny, tasks: int) -> StageState:
    """Random branches of `tasks` stages on the tiny model."""
    parts = []
    layers = {
        path: module
        for path, module in tiny.backbone.model.named_modules()
        if path.rsplit(".", 1)[-1] in tiny.backbone.targets
    }
    for task in range(1, tasks + 1):
        a = {path: torch.randn(4, one.in_features) / one.in_features**0.5 for path, one in layers.items()}
        b = {path: torch.randn(one.out_features, 4) for path, one in layers.items()}
        parts.append(StagePart(f"task{task}", Branch(4, 16.0, a, b)))
    return StageState(tuple(parts))


def test_the_penalty_by_hand():
    """old = [[2, 0], [-1, 0]], new = 2 [[3, 15], [1, 5]]: products 12 and -2, squares 144 + 4 = 148 a layer."""
    term = by_hand(forgetting=[9.0, 0.25, 9.0]).penalties(None)["forgetting"]
    assert term.weight == 0.25 and term.raw.item() == pytest.approx(148.0, rel=1e-6)
    assert by_hand(layers=3).penalties(None)["forgetting"].raw.item() == pytest.approx(3 * 148.0, rel=1e-6)
    assert by_hand(branches=1).penalties(None) == {}


def test_the_gradients_by_hand():
    """With d = 2 old^2 * new = [[48, 0], [4, 0]]: dB = s d A^T = (96, 8), dA = s B^T d = (2 (144 + 4), 0)."""
    method = by_hand()
    layer = method.branches.layers["layer0"]
    method.penalties(None)["forgetting"].raw.backward()
    assert layer.up.grad.flatten().tolist() == pytest.approx([96.0, 8.0])
    assert layer.down.grad.flatten().tolist() == pytest.approx([296.0, 0.0])


def test_the_penalty_is_fp32_under_autocast():
    """bf16 autocast does not round the products, in either pass."""
    method = by_hand()
    layer = method.branches.layers["layer0"]
    layer.down.data[0, 0] = 1.001
    with torch.autocast("cpu", torch.bfloat16):
        raw = method.penalties(None)["forgetting"].raw
    raw.backward()
    assert raw.dtype == torch.float32 and raw.item() == pytest.approx(148 * 1.001**2, rel=1e-6)
    assert layer.up.grad[0].item() == pytest.approx(96 * 1.001**2, rel=1e-6)


def test_the_penalty_of_a_state(tiny):
    """Against three old branches it is the norm of the plain products, with the same gradients; B_t = 0 gives 0."""
    state = random_state(tiny, 3)
    method = make_method(CASES["c_lora"].params, 4)
    method.install(tiny.backbone, state)
    try:
        assert method.penalties(None)["forgetting"].raw.item() == 0
        total = 0.0
        for layer in method.branches.layers.values():
            layer.up.data.normal_()
        method.penalties(None)["forgetting"].raw.backward()
        for path, layer in method.branches.layers.items():
            old = sum(4.0 * branch.b[path] @ branch.a[path] for branch in state.branches)
            a, b = (weight.detach().clone().requires_grad_() for weight in (layer.down, layer.up))
            term = (old.abs() * (4.0 * b @ a)).norm() ** 2
            term.backward()
            total += term.item()
            assert torch.allclose(layer.down.grad, a.grad, rtol=1e-3, atol=1e-3)
            assert torch.allclose(layer.up.grad, b.grad, rtol=1e-3, atol=1e-3)
            assert layer.frozen_a.grad is None and not layer.frozen_a.requires_grad
        assert method.penalties(None)["forgetting"].raw.item() == pytest.approx(total, rel=1e-4)
    finally:
        method.remove()


def test_the_penalty_lowers_the_overlap_in_training(tiny, toy_tasks, run_sequence):
    """A stage with lambda ends with a smaller overlap than the same stage without; the log shows raw and weighted."""
    overlaps = {}
    for weight in (0.0, 1e4):
        results = run_sequence(tiny, CASES["c_lora"].params | {"forgetting": weight}, toy_tasks[:2])
        old, new = (result.part.branch for result in results)
        products = [(old.b[path] @ old.a[path]) * (new.b[path] @ new.a[path]) for path in old.a]
        overlaps[weight] = sum(product.square().sum().item() for product in products)
        term = results[1].log[-1]["terms"]["forgetting"]
        assert term["weighted"] == pytest.approx(weight * term["raw"])
        assert results[0].log[-1]["terms"] == {}
    assert overlaps[1e4] < overlaps[0.0] / 2


def test_without_weight_it_is_inc_lora(tiny, toy_tasks, run_sequence):
    """lambda = 0 trains bit for bit IncLoRA's branches, over three tasks."""
    ours = run_sequence(tiny, CASES["c_lora"].params | {"forgetting": 0.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks)
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))


def test_settings_differ_by_family():
    """The estimates of lambda."""
    assert CLora.settings("t5", "std-1")["method"]["forgetting"] == 1e2
    assert CLora.settings("llama", "std-1")["method"]["forgetting"] == 1e6
