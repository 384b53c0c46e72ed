"""OSF: what is protected stays under AdamW with decay, where hooks on gradients let it go; factors that act; sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raycl.adapters.low_directions import GuardedPair, LowPair, directions, off, weight_with
from raycl.methods.osf import Osf, OsfParams
from raycl.state.stage_state import Branch, StageState
from raycl.testing.probes import answer_logits, batch_of, largest_difference, make_method
from tests.kit.cases import CASES

PARAMS = CASES["osf"].params
SHAPES = [(24, 24), (30, 18), (18, 30)]
"""(d_out, d_in): square, and not square both ways."""
KEEP = 7


def a_weight(d_out: int, d_in: int) -> Tensor:
    """Random numbers, always the same."""
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(d_out))


def a_pair(form: str, weight: Tensor) -> GuardedPair | LowPair:
    """What trains on a weight, at its start: B = 0."""
    found = directions(weight, KEEP)
    if form == "full":
        return LowPair(found)
    draw = torch.Generator().manual_seed(1)
    return GuardedPair(torch.randn(4, weight.shape[1], generator=draw), torch.zeros(len(weight), 4), found)


def train(parameters: list[nn.Parameter], loss: Any, steps: int, hook: Any = None) -> None:
    """AdamW with decay; `hook` may change gradients before each step."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        if hook is not None:
            hook()
        optimizer.step()


def test_directions_are_those_of_a_diagonal():
    """W = diag(1, -3, 2) with one direction kept: the second axis, 9 / 14 of the energy; 2 and 1 are left, in this order."""
    found = directions(torch.diag(torch.tensor([1.0, -3.0, 2.0])), 1)
    assert found.kept_out.tolist() == [[0, 1, 0]] and found.kept_in.tolist() == [[0, -1, 0]]
    assert found.values.tolist() == [2, 1] and found.energy == pytest.approx(9 / 14)
    assert found.low_out.T.tolist() == [[0, 0, 1], [1, 0, 0]] and found.low_in.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert directions(torch.zeros(3, 3), 1).energy == 1.0


@pytest.mark.parametrize("d_out,d_in", SHAPES)
def test_directions_put_the_weight_together_again(d_out, d_in):
    """The low part is what the kept projectors leave of W on either side; bases are orthonormal."""
    weight = a_weight(d_out, d_in)
    found = directions(weight, KEEP)
    low = found.low_out @ torch.diag(found.values) @ found.low_in
    assert torch.allclose(off(weight, found.kept_in), low, atol=1e-5)
    assert torch.allclose(off(weight.T, found.kept_out).T, low, atol=1e-5)
    for rows in (found.kept_out, found.kept_in, found.low_out.T, found.low_in):
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


@pytest.mark.parametrize("form", ["lora", "full"])
@pytest.mark.parametrize("d_out,d_in", SHAPES)
def test_nothing_protected_moves_under_adamw_with_decay(form, d_out, d_in):
    """100 steps to another weight: U_h^T D = 0 and D V_h^T = 0 to 1e-5 of D; the loss falls; at the start D = 0 exactly.

    The two modules, called one after the other, are the product of the factors.
    """
    weight = a_weight(d_out, d_in)
    pair, goal = a_pair(form, weight), 0.3 * a_weight(d_out, d_in + 1)[:, 1:]
    x = torch.randn(50, d_in, generator=torch.Generator().manual_seed(3))
    assert not pair.up(pair.down(x)).any()
    trained = [one for module in (pair.down, pair.up) for one in module.parameters() if one.requires_grad]

    def loss() -> Tensor:
        return (pair.up(pair.down(x)) - x @ goal.T).square().mean()

    before = loss().item()
    train(trained, loss, 100)
    assert loss().item() < 0.9 * before
    a, b = pair.factors()
    d, found = b @ a, directions(weight, KEEP)
    assert (found.kept_out @ d).norm() <= 1e-5 * d.norm() and (d @ found.kept_in.T).norm() <= 1e-5 * d.norm()
    assert torch.allclose(pair.up(pair.down(x)), x @ d.T, atol=1e-4)
    assert len(a) == (4 if form == "lora" else min(d_out, d_in) - KEEP)


def test_the_update_is_the_papers_expression():
    """D = U_l' S_l' V_l' - U_l S_l V_l in fp64, after any move; and U_h^T (U_l' - U_l) = 0."""
    weight = a_weight(30, 18)
    found, pair = directions(weight, KEEP), LowPair(directions(weight, KEEP))
    for parameter in (pair.down.weight, pair.up.weight, pair.up.move):
        parameter.data.normal_(generator=torch.Generator().manual_seed(5))
    u, s, v = found.low_out.double(), found.values.double(), found.low_in.double()
    moved_u = u + off(pair.up.weight.double().T, found.kept_out.double()).T
    moved_v = v + off(pair.down.weight.double(), found.kept_in.double())
    d = moved_u @ torch.diag(s + pair.up.move.double()) @ moved_v - u @ torch.diag(s) @ v
    a, b = pair.factors()
    assert ((b @ a).double() - d).norm() <= 1e-5 * d.norm()
    assert (found.kept_out.double() @ (moved_u - u)).norm() <= 1e-5 * (moved_u - u).norm()


def test_hooks_on_gradients_let_it_go():
    """The negative control: projected gradients keep U_h^T (U_l' - U_l) = 0 under SGD, and not under AdamW: over 1e-2."""
    weight = a_weight(24, 24)
    found, goal = directions(weight, KEEP), 0.3 * a_weight(24, 25)[:, 1:]
    leaves = {}
    for optimizer in ("adamw", "sgd"):
        u = nn.Parameter(found.low_out.clone())

        def loss(u: Tensor = u) -> Tensor:
            return ((u - found.low_out) @ torch.diag(found.values) @ found.low_in - goal).square().mean()

        def project(u: nn.Parameter = u) -> None:
            assert u.grad is not None
            u.grad = off(u.grad.T, found.kept_out).T

        if optimizer == "adamw":
            train([u], loss, 100, project)
        else:
            for _ in range(100):
                u.grad = None
                loss().backward()
                project()
                u.data -= 0.1 * u.grad
        move = u.detach() - found.low_out
        leaves[optimizer] = float((found.kept_out @ move).norm() / move.norm())
    assert leaves["adamw"] > 1e-2 and leaves["sgd"] < 1e-5


@pytest.mark.parametrize("form", ["lora", "full"])
def test_each_stage_keeps_off_the_weight_so_far(tiny, toy_tasks, run_sequence, form):
    """Over three stages, against a decomposition of W_(t-1) made here; and what stage 1 learned is part of it."""
    results = run_sequence(tiny, CASES["osf" if form == "lora" else "osf_full"].params, toy_tasks)
    for path in results[0].part.pair.a:
        weight = tiny.backbone.model.get_submodule(path).weight.detach().double()
        for result in results:
            branch = result.part.pair
            d = branch.alpha / branch.rank * branch.b[path].double() @ branch.a[path].double()
            k = 3 if form == "lora" else min(weight.shape) // 2
            u, _, v = torch.linalg.svd(weight)
            assert d.norm() > 1e-3
            assert (u[:, :k].T @ d).norm() <= 1e-4 * d.norm() and (d @ v[:k].T).norm() <= 1e-4 * d.norm()
            weight = weight + d


def test_the_weight_so_far_counts_every_branch_with_its_own_scale():
    """W + 2 b a + 0.5 b' a' by hand; W of a module that stores it transposed; in fp32 of a bf16 weight."""
    from transformers.pytorch_utils import Conv1D

    first = Branch(1, 2.0, {"x": torch.tensor([[1.0, 0.0]])}, {"x": torch.tensor([[1.0], [2.0], [0.0]])})
    second = Branch(2, 1.0, {"x": torch.eye(2)}, {"x": torch.ones(3, 2)})
    wanted = [[2.5, 0.5], [4.5, 0.5], [0.5, 0.5]]
    for base in (nn.Linear(2, 3, bias=False), Conv1D(3, 2), nn.Linear(2, 3).bfloat16()):
        base.weight.data.zero_()
        layer: Any = SimpleNamespace(get_base_layer=lambda base=base: base)
        found = weight_with(layer, "x", [first, second])
        assert found.tolist() == wanted and found.dtype == torch.float32 and not base.weight.any()


def test_a_stage_begins_at_the_function_before(tiny, toy_tasks, run_sequence):
    """With the low directions themselves to 1e-5 of the largest logit, though they are not 0 as B is."""
    state = run_sequence(tiny, CASES["osf_full"].params, toy_tasks[:1])[0].state
    inputs = batch_of(tiny, toy_tasks[0].test)
    logits = []
    for stage, serve in ((1, True), (2, False)):
        method = make_method(CASES["osf_full"].params, stage)
        method.serve(tiny.backbone, state) if serve else method.install(tiny.backbone, state)
        try:
            logits.append(answer_logits(tiny, method, inputs))
        finally:
            method.remove()
    assert largest_difference(*logits) <= 1e-5 * max(row.abs().max().item() for row in logits[0])


def test_another_machines_directions_are_those_of_the_checkpoint(tiny):
    """`running` holds what a decomposition found and does not what trains, and writing to it is seen by the modules."""
    method = make_method(CASES["osf_full"].params)
    method.install(tiny.backbone, StageState())
    try:
        held = method.running()
        path, pair = next(iter(method.pairs.items()))
        assert {name.removeprefix(f"{path}/") for name in held if name.startswith(f"{path}/")} == {
            *("in/kept", "in/low"),
            *("out/kept", "out/low", "out/values"),
        }
        held[f"{path}/in/low"].neg_()
        assert torch.equal(pair.down.low, held[f"{path}/in/low"])
        assert 0 < method.measures()["protected_energy"] < 1
    finally:
        method.remove()


@pytest.mark.parametrize("protect,kept", [(0.5, 5), (0.99, 9), (0.01, 1), (9, 9), (1, 1)], ids=lambda value: str(value))
def test_how_much_is_protected(protect, kept):
    """Of ten singular values; something always trains."""
    params = OsfParams(protect=protect)
    assert params.kept(10, 12) == params.kept(12, 10) == kept
    assert params.branch_rank(10, 12) == 8
    assert OsfParams(protect=protect, form="full").branch_rank(10, 12) == 10 - kept


def test_what_cannot_be_protected():
    """All of a module by number: at installation, with what is allowed; nothing, or a share that is none: at once."""
    with pytest.raises(ValueError, match=r"method\.protect: 10 .*12 inputs and 10 outputs.*at most 9"):
        OsfParams(protect=10).kept(12, 10)
    for wrong in (0, 1.0, -0.5, 1.5, "much"):
        with pytest.raises(ValidationError):
            OsfParams.model_validate({"protect": wrong})


def test_rank_and_alpha_have_no_effect_on_the_low_directions():
    """So that keys do without them; the branch's scale is 1."""
    full = OsfParams(form="full", rank=3, alpha=7.0)
    assert full.at(1) == OsfParams(form="full").at(1) and "rank" not in full.at(1)
    assert full.shape.alpha / full.shape.rank == 1
    assert OsfParams(rank=3).at(1) != OsfParams().at(1)


def test_settings_are_the_papers():
    """The low directions themselves; the rate and decay by family."""
    t5, llama = (Osf.settings(family, "std-1") for family in ("t5", "llama"))
    assert (t5["method"]["form"], t5["train"]["lr"], llama["train"]["lr"]) == ("full", 5e-5, 1e-5)


@pytest.mark.parametrize("name", ["osf", "osf_full"])
def test_merged_is_the_composite(tiny, toy_tasks, run_sequence, name):
    """W + D_1 + D_2 written into the weights gives the logits of the served branches."""
    state = run_sequence(tiny, CASES[name].params, toy_tasks[:2])[-1].state
    inputs = batch_of(tiny, toy_tasks[0].test)
    method = make_method(CASES[name].params, 2)
    method.serve(tiny.backbone, state)
    try:
        served = answer_logits(tiny, method, inputs)
    finally:
        method.remove()
    own = {path: tiny.backbone.model.get_submodule(path).weight for path in state.branches[0].a}
    before = {path: weight.data for path, weight in own.items()}
    try:
        for path, weight in own.items():
            changes = (one.alpha / one.rank * one.b[path] @ one.a[path] for one in state.branches)
            weight.data = weight.data + sum(changes)
        merged = answer_logits(tiny, None, inputs)
    finally:
        for path, weight in own.items():
            weight.data = before[path]
    assert largest_difference(merged, served) <= 1e-5 * max(row.abs().max().item() for row in served)
    assert largest_difference(answer_logits(tiny, None, inputs), served) > 0.1
