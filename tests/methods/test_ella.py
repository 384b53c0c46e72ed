"""ELLA: the entrywise penalty by hand, exact and factored, its minimiser, and what it does to entries that were moved."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.ella import Ella, energy, factored, factors
from raycl.testing.probes import make_method, same_part
from tests.kit.cases import CASES
from tests.methods.test_c_lora import random_state

PARAMS = CASES["ella"].params | {"rank": 1, "alpha": 2, "dropout": 0.0}


class Layer:
    """A stand-in for an adapted layer with two frozen branches of rank 1, [[2, 0], [0, 0]] and [[-2, 0], [1, 0]], whose sum
    is [[0, 0], [1, 0]]; B_t A_t = [[3], [1]] [[1, 5]]."""

    def __init__(self) -> None:
        self.frozen_b = torch.tensor([[2.0, -2.0], [0.0, 1.0]])
        self.frozen_a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        self.frozen_ranks = (1, 1)
        self.down = torch.nn.Parameter(torch.tensor([[1.0, 5.0]]))
        self.up = torch.nn.Parameter(torch.tensor([[3.0], [1.0]]))


def by_hand(layers: int = 1, branches: int = 3, **params) -> Ella:
    """ELLA at stage 3 with layers of known matrices and s = 2."""
    method = make_method(PARAMS | params, 3)
    cpu = type("Anything", (), {"device": torch.device("cpu")})
    known = {"layers": {f"layer{i}": Layer() for i in range(layers)}, "backbone": cpu, "count": branches}
    method.branches = type("Anything", (), known)
    factored_too = params.get("penalty") == "factored"
    method.factors = {
        path: factors(energy(layer, method.params.energy)) for path, layer in known["layers"].items() if factored_too
    }
    return method


def test_the_penalty_by_hand():
    """E = [[0, 0], [1, 0]], s B A = [[6, 30], [2, 10]]: only the entry 2 meets a past, 4 a module, as in the mean over
    modules. With the squares of both branches E^2 = [[8, 0], [1, 0]]: 8 x 36 + 4 = 292, where the sum of both is 0."""
    term = by_hand(strength=[9.0, 9.0, 0.25]).penalties(None)["overlap"]
    assert term.weight == 0.25 and term.raw.item() == pytest.approx(4.0)
    assert by_hand(layers=3).penalties(None)["overlap"].raw.item() == pytest.approx(4.0)
    assert by_hand(energy="squares").penalties(None)["overlap"].raw.item() == pytest.approx(292.0)
    assert by_hand(branches=1).penalties(None) == {}


@pytest.mark.parametrize("kind", ["sum", "squares"])
def test_factored_is_exact_where_e_squared_has_rank_one(kind):
    """Here all of E^2 is in one column; the gradients are the same too, in fp32 under autocast."""
    found = {}
    for penalty in ("exact", "factored"):
        method = by_hand(energy=kind, penalty=penalty)
        layer = method.branches.layers["layer0"]
        with torch.autocast("cpu", torch.bfloat16):
            raw = method.penalties(None)["overlap"].raw
        raw.backward()
        assert raw.dtype == torch.float32
        found[penalty] = torch.cat([raw.detach()[None], layer.up.grad.flatten(), layer.down.grad.flatten()])
    assert torch.allclose(found["exact"], found["factored"], rtol=1e-6)


def test_factors_keep_rows_columns_and_the_total():
    """u = (3, 7), v = (4, 6) / 10; an E of zeros has factors of zeros."""
    rows, columns = factors(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert rows.tolist() == [3.0, 7.0] and columns.tolist() == pytest.approx([0.4, 0.6])
    assert factored(torch.ones(1, 2), torch.ones(2, 1), 2.0, rows, columns).item() == pytest.approx(4 * 10.0)
    assert not any(part.any() for part in factors(torch.zeros(2, 2)))


def test_gradients_agree_with_differences():
    """In fp64, of both forms."""
    draw = torch.Generator().manual_seed(0)
    down = torch.randn(2, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    up = torch.randn(3, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    squares = torch.randn(3, 4, generator=draw, dtype=torch.float64).square()
    assert torch.autograd.gradcheck(lambda a, b: (squares * (2.0 * b @ a).square()).sum(), (down, up))
    assert torch.autograd.gradcheck(lambda a, b: factored(a, b, 2.0, *factors(squares)), (down, up))


def test_the_best_update_is_shrunk_where_the_past_was():
    """A branch of full rank that minimises ||D - G||^2 / 2 + lambda / L penalty is G / (1 + 2 lambda E^2 / L)."""
    method = by_hand(layers=2, strength=3.0, alpha=1)
    layer = method.branches.layers["layer0"]
    layer.down, layer.up = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.zeros(2, 2))
    wanted = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    optimizer = torch.optim.LBFGS([layer.up], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        term = method.penalties(None)["overlap"]
        value = (layer.up @ layer.down - wanted).square().sum() / 2 + term.weight * term.raw
        value.backward()
        return value

    optimizer.step(loss)
    past = energy(Layer(), "sum")
    assert torch.allclose(layer.up.detach() @ layer.down.detach(), wanted / (1 + 2 * 3.0 * past / 2), atol=1e-4)


@pytest.mark.parametrize("kind", ["sum", "squares"])
def test_the_penalty_of_a_state(tiny, kind):
    """Against three old branches it is the plain mean over modules, with the same gradients; B_t = 0 gives 0."""
    state = random_state(tiny, 3)
    method = make_method(CASES["ella"].params | {"energy": kind}, 4)
    method.install(tiny.backbone, state)
    try:
        assert not method.factors and method.penalties(None)["overlap"].raw.item() == 0
        layers = method.branches.layers
        for layer in layers.values():
            layer.up.data.normal_()
        method.penalties(None)["overlap"].raw.backward()
        total = 0.0
        for path, layer in layers.items():
            updates = [4.0 * branch.b[path] @ branch.a[path] for branch in state.branches]
            past = sum(updates).square() if kind == "sum" else sum(one.square() for one in updates)
            a, b = (weight.detach().clone().requires_grad_() for weight in (layer.down, layer.up))
            term = (past * (4.0 * b @ a).square()).sum() / len(layers)
            term.backward()
            total += term.item()
            assert torch.allclose(layer.up.grad, b.grad, rtol=1e-3, atol=1e-3 * b.grad.abs().max())
            assert torch.allclose(layer.down.grad, a.grad, rtol=1e-3, atol=1e-3 * a.grad.abs().max())
        assert method.penalties(None)["overlap"].raw.item() == pytest.approx(total, rel=1e-4)
    finally:
        method.remove()


def test_auto_is_factored_above_its_size(tiny, monkeypatch):
    """By the numbers of all E; asked for by name, either form is taken at any size."""
    state = random_state(tiny, 1)
    for penalty, limit, has in (
        ("auto", 10**9, False),
        ("auto", 10, True),
        ("exact", 10, False),
        ("factored", 10**9, True),
    ):
        monkeypatch.setattr("raycl.methods.ella.EXACT_UP_TO", limit)
        method = make_method(CASES["ella"].params | {"penalty": penalty}, 2)
        method.install(tiny.backbone, state)
        method.remove()
        assert bool(method.factors) == has


def test_the_penalty_lowers_the_overlap_in_training(tiny, toy_tasks, run_sequence):
    """A stage with lambda ends with a smaller overlap than the same stage without; the log shows raw and weighted."""
    overlaps = {}
    for strength in (0.0, 1e5):
        results = run_sequence(tiny, CASES["ella"].params | {"strength": strength}, toy_tasks[:2])
        old, new = (result.part.branch for result in results)
        products = [(old.b[path] @ old.a[path]) * (new.b[path] @ new.a[path]) for path in old.a]
        overlaps[strength] = sum(product.square().sum().item() for product in products)
        term = results[1].log[-1]["terms"]["overlap"]
        assert term["weighted"] == pytest.approx(strength * term["raw"])
        assert results[0].log[-1]["terms"] == {}
    assert overlaps[1e5] < overlaps[0.0] / 2


def test_without_strength_it_is_inc_lora(tiny, toy_tasks, run_sequence):
    """lambda = 0 trains bit for bit IncLoRA's branches, over three tasks."""
    ours = run_sequence(tiny, CASES["ella"].params | {"strength": 0.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks)
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))
