"""LoRAC: the orthonormality loss and the scalars by hand; IPC: importance, which modules become critical, what they keep."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.common.base import Gradients
from raycl.methods.lorac import Lorac
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.case import ADAPTED
from raycl.testing.probes import make_method, same_part, serving
from tests.kit.cases import CASES, SHAPE

PARAMS = SHAPE | {"name": "lorac", "dropout": 0.0}
IPC = CASES["lorac_ipc"].params | {"critical_share": 0.5}


class Layer:
    """A stand-in for an adapted layer."""

    def __init__(self, a: list[list[float]], b: list[list[float]]) -> None:
        self.down, self.up = (torch.nn.Parameter(torch.tensor(values)) for values in (a, b))


def by_hand(old_a: torch.Tensor | None = None, modules: int = 1, **params) -> Lorac:
    """LoRAC with layers of A_t = [[1, 0], [1, 1]] and B_t = [[1], [-2]]."""
    method = make_method(PARAMS | params, 2)
    layers = {f"module{i}": Layer([[1.0, 0.0], [1.0, 1.0]], [[1.0], [-2.0]]) for i in range(modules)}
    cpu = type("Anything", (), {"device": torch.device("cpu")})
    method.branches = type("Anything", (), {"layers": layers, "backbone": cpu})
    method.free, method.critical = list(layers), []
    method.importance, method.deviation = torch.zeros(modules), torch.zeros(modules)
    method.old_a = {} if old_a is None else dict.fromkeys(layers, old_a)
    method.offsets = {path: (a @ a.T - torch.eye(len(a))).norm() for path, a in method.old_a.items()}
    return method


def random_state(tiny, tasks: int, critical: list[str] | None = None) -> StageState:
    """Random branches and scalars of `tasks` stages on the tiny model."""
    layers = {
        path: module
        for path, module in tiny.backbone.model.named_modules()
        if path.rsplit(".", 1)[-1] in tiny.backbone.targets
    }
    parts = []
    for task in range(1, tasks + 1):
        a = {path: torch.randn(4, one.in_features) / one.in_features**0.5 for path, one in layers.items()}
        b = {path: torch.randn(one.out_features, 4) for path, one in layers.items()}
        omega = {f"omega/{path}": torch.cat([torch.rand(task - 1) + 0.5, torch.ones(1)]) for path in layers}
        facts = {} if critical is None else {"critical": critical}
        parts.append(StagePart(f"task{task}", Branch(4, 16.0, a, b), omega, facts))
    return StageState(tuple(parts))


def test_the_loss_by_hand():
    """A A^T - I = [[0, 1], [1, 1]]: sqrt(3). With A_old = (2, 0) above it, [[3, 2, 2], [2, 0, 1], [2, 1, 1]]: sqrt(28)."""
    first = by_hand(ortho=0.3).penalties(None)["orthonormality"]
    assert first.weight == 0.3 and first.raw.item() == pytest.approx(3**0.5, rel=1e-6)
    assert by_hand(modules=2).penalties(None)["orthonormality"].raw.item() == pytest.approx(2 * 3**0.5, rel=1e-6)
    later = by_hand(torch.tensor([[2.0, 0.0]])).penalties(None)["orthonormality"]
    assert later.raw.item() == pytest.approx(28**0.5, rel=1e-6)
    assert by_hand(ortho=[1.0, 0.0, 1.0]).penalties(None) == {}


def test_the_loss_is_that_of_the_stacked_matrix(tiny):
    """Block by block gives ||A_all A_all^T - I||_F and its gradient, in every free module and in no critical one."""
    critical = [sorted(random_state(tiny, 1).last.branch.a)[0]]
    state = random_state(tiny, 2, critical)
    method = make_method(PARAMS | {"ipc": True}, 3)
    method.install(tiny.backbone, state)
    try:
        method.penalties(None)["orthonormality"].raw.backward()
        total = 0.0
        for path, layer in method.branches.layers.items():
            if path in critical:
                assert layer.down.grad is None and not layer.down.requires_grad
                continue
            new = layer.down.detach().clone().requires_grad_()
            stacked = torch.cat([*(branch.a[path] for branch in state.branches), new])
            distance = (stacked @ stacked.T - torch.eye(12)).norm()
            distance.backward()
            total += distance.item()
            assert torch.allclose(layer.down.grad, new.grad, atol=1e-5)
            assert layer.up.grad is None
        assert method.penalties(None)["orthonormality"].raw.item() == pytest.approx(total, rel=1e-5)
    finally:
        method.remove()


def test_the_loss_alone_makes_the_rows_orthonormal(tiny):
    """Minimised for itself, the term falls until the new rows are nearly orthonormal and off the old ones."""
    method = make_method(PARAMS, 1)
    method.install(tiny.backbone, StageState())
    try:
        downs = [layer.down for layer in method.branches.layers.values()]
        optimizer = torch.optim.AdamW(downs, lr=3e-3, weight_decay=0.0)
        start = method.penalties(None)["orthonormality"].raw.item()
        for _ in range(150):
            optimizer.zero_grad()
            method.penalties(None)["orthonormality"].raw.backward()
            optimizer.step()
        assert method.penalties(None)["orthonormality"].raw.item() < start / 10
        assert (downs[0] @ downs[0].T - torch.eye(4)).abs().max() < 0.05
    finally:
        method.remove()


def test_every_layer_follows_the_formula(tiny):
    """y = W x + sum_i omega_i u_i, the newest branch with 1."""
    state = random_state(tiny, 3)
    with serving(tiny, PARAMS, state) as method:
        for path, layer in method.branches.layers.items():
            x = torch.randn(2, 5, layer.in_features)
            omega = state.last.tensors[f"omega/{path}"]
            assert omega[2] == 1
            expected = layer.get_base_layer()(x)
            for weight, branch in zip(omega, state.branches, strict=True):
                expected = expected + weight * 4.0 * x @ branch.a[path].T @ branch.b[path].T
            with torch.no_grad():
                assert torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_the_scalars_start_at_1_and_train_from_then_on(tiny, toy_tasks, run_sequence):
    """A branch's scalar is 1 after its own stage and moves in later ones, by at most rate x lr x steps."""
    for rate in (1.0, 0.1):
        results = run_sequence(tiny, CASES["lorac"].params | {"omega_lr": rate}, toy_tasks)
        for stage, result in enumerate(results, start=1):
            for path in result.part.branch.a:
                omega = result.part.tensors[f"omega/{path}"]
                before = results[stage - 2].part.tensors[f"omega/{path}"] if stage > 1 else torch.zeros(0)
                assert omega.shape == (stage,) and omega[-1] == 1
                moved = (omega[:-1] - before).abs()
                assert (moved > 0).all() and (moved < rate * 0.01 * 8 * 1.5).all()
        assert results[2].log[-1]["gauges"]["omega_min"] < 1 < results[2].log[-1]["gauges"]["omega_max"]


def test_the_first_stage_without_the_loss_is_sin_lora(tiny, toy_tasks, run_stage):
    """No scalars, no term: bit for bit SinLoRA's branch; following the gradients changes nothing."""
    plain = run_stage(tiny, CASES["sin_lora"].params, toy_tasks).part.branch
    for ipc in (False, True):
        ours = run_stage(tiny, CASES["lorac"].params | {"ortho": 0.0, "ipc": ipc}, toy_tasks).part.branch
        assert all(torch.equal(ours.a[path], plain.a[path]) for path in plain.a)
        assert all(torch.equal(ours.b[path], plain.b[path]) for path in plain.b)


def test_importance_by_hand():
    """mean |B g| = (|1 * 0.5| + |-2 * 0.25|) / 2 = 0.5; M = 0.15 * 0.5, U = 0.15 * (0.5 - 0.075); then without gradient."""
    method = by_hand(ipc=True)
    gradient = torch.tensor([[0.5], [0.25]])
    method.gradients(Gradients(lambda parameter: gradient, None, None))
    assert method.importance.item() == pytest.approx(0.075, rel=1e-6)
    assert method.deviation.item() == pytest.approx(0.06375, rel=1e-6)
    method.gradients(Gradients(lambda parameter: None, None, None))
    assert method.importance.item() == pytest.approx(0.06375, rel=1e-6)
    assert method.deviation.item() == pytest.approx(0.85 * 0.06375 + 0.15 * 0.06375, rel=1e-6)
    kept = method.running()
    assert kept["importance"] is method.importance and kept["deviation"] is method.deviation
    assert by_hand().running() == {} and not by_hand().follows_gradients and method.follows_gradients


@pytest.mark.parametrize(
    ("params", "earlier", "chosen"),
    [
        ({"critical_share": 0.5}, 0, ["module1", "module3"]),
        ({"critical_share": 0.2}, 0, []),
        ({"critical_share": 0.9}, 0, ["module1", "module3", "module0"]),
        ({"critical_share": 0.3}, 4, ["module1"]),
        ({"critical_share": 0.3, "share_of": "all"}, 4, ["module1", "module3"]),
    ],
)
def test_which_modules_become_critical(params, earlier, chosen):
    """Scores 1, 4, 1, 3: the largest first, equal ones by name; of the free modules or of all; one always stays free."""
    method = by_hand(modules=4, ipc=True, **params)
    method.importance, method.deviation = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([1.0, 2.0, 2.0, 1.0])
    for index in range(earlier):
        method.branches.layers[f"earlier{index}"] = None
        method.critical.append(f"earlier{index}")
    assert method.facts() == {"critical": sorted([*method.critical, *chosen])}


def test_a_critical_module_stays_as_it_is(tiny, family, toy_tasks, run_sequence):
    """Half of the free modules freeze after each stage: no further branch, fixed scalars, nothing of theirs trains."""
    results = run_sequence(tiny, IPC, toy_tasks, weight_decay=0.1)
    modules = len(ADAPTED[family])
    critical: set[str] = set()
    for stage, result in enumerate(results, start=1):
        part = result.part
        for path in ADAPTED[family]:
            trains = f"model.{path}.lora_B.branch.weight" in result.trainable
            assert trains == (path not in critical)
            assert part.branch.a[path].any() == trains and part.branch.b[path].any() == trains
            if stage > 1:
                before = results[stage - 2].part.tensors[f"omega/{path}"]
                assert torch.equal(part.tensors[f"omega/{path}"][:-1], before) == (not trains)
        now = set(part.facts["critical"])
        assert critical <= now and len(now) == len(critical) + (modules - len(critical)) // 2
        critical = now


def test_importance_does_not_depend_on_how_a_batch_is_cut(tiny, toy_tasks, run_stage):
    """The gradients are those of the global batch: whole or in micro-batches, the running means agree."""
    still = IPC | {"dropout": 0.0}
    whole = run_stage(tiny, still, toy_tasks, epochs=2).method
    cut = run_stage(tiny, still, toy_tasks, epochs=2, micro_batch_size=2).method
    assert (whole.importance > 0).all() and (whole.deviation > 0).all()
    assert torch.allclose(whole.importance, cut.importance, rtol=1e-3)
    assert torch.allclose(whole.deviation, cut.deviation, rtol=1e-3)


def test_ipc_without_critical_modules_trains_as_without(tiny, toy_tasks, run_sequence):
    """While no module is critical, IPC only watches."""
    ours = run_sequence(tiny, CASES["lorac"].params, toy_tasks[:2])
    watched = run_sequence(tiny, CASES["lorac"].params | {"ipc": True, "critical_share": 0.01}, toy_tasks[:2])
    for left, right in zip(ours, watched, strict=True):
        assert right.part.facts == {"critical": []}
        assert same_part(
            StagePart("x", left.part.branch, left.part.tensors), StagePart("x", right.part.branch, right.part.tensors)
        )
