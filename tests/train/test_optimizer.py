"""Muon for the matrices of branches, AdamW for the rest: steps by an independent formula, who is moved by what, resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycl.methods.registry import METHODS, method_params
from raycl.models.load import LoadedModel
from raycl.sections import TrainSpec
from raycl.testing.probes import make_method, same_part
from raycl.testing.ranks import Job, Killed, Memory, Pair, make_odd_tasks, run_job, run_one
from raycl.testing.tiny import load_tiny
from raycl.testing.toys import make_toy_task, run_sequence_in_memory, run_stage_in_memory
from raycl.train.engine import BatchShape, Work, make_engine
from raycl.train.module import StageModule
from raycl.train.optimizer import MuonAndAdamW, make_optimizer, rules
from raycl.train.workers import Workers
from tests.kit.cases import CASES

MUON = TrainSpec(optimizer="muon")
SHAPES = [(4, 40), (40, 4), (12, 12)]
NAME = "model.q_proj.lora_A.branch.weight"


def stepped(start: Tensor, gradients: list[Tensor], rate: float = 0.1, **train: Any) -> Tensor:
    """What Muon makes of a factor, a gradient after the other."""
    weight = nn.Parameter(start.clone())
    optimizer = make_optimizer({NAME: weight}, TrainSpec(optimizer="muon", **train))
    for group in optimizer.param_groups:
        group["lr"] = rate
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def drawn(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A gradient of full rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_a_step_moves_all_directions_alike(shape: tuple[int, int], scale: str) -> None:
    """The gradient's own singular vectors, with values between 0.6 and 1.3 once the scale is off: by torch's SVD."""
    gradient = drawn(shape)
    size = 0.2 * max(shape) ** 0.5 if scale == "match_rms_adamw" else max(1.0, shape[0] / shape[1]) ** 0.5
    moved = -stepped(torch.zeros(shape), [gradient], muon_scale=scale) / (0.1 * size)
    u, s, v = torch.linalg.svd(gradient, full_matrices=False)
    inside = u.T @ moved @ v.T
    assert s[0] / s[-1] > 1.3
    assert inside.diagonal().min() >= 0.6 and inside.diagonal().max() <= 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < 0.05


def test_steps_are_about_adamws() -> None:
    """With the default scale: 0.2 times the rate in the root of the mean square, whatever the shape."""
    for shape in SHAPES:
        moved = stepped(torch.zeros(shape), [drawn(shape)], 0.01)
        assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3)


def test_the_momentum_is_nesterovs() -> None:
    """After g and h a step is along 0.05 h + 0.95 m, m = 0.95 * 0.05 g + 0.05 h: as one step of that gradient alone."""
    g, h = drawn((4, 40), 1), drawn((4, 40), 2)
    m = 0.95 * 0.05 * g + 0.05 * h
    last = stepped(torch.zeros(4, 40), [g, h]) - stepped(torch.zeros(4, 40), [g])
    assert torch.allclose(last, stepped(torch.zeros(4, 40), [0.05 * h + 0.95 * m]), atol=2e-3)
    assert (last - stepped(torch.zeros(4, 40), [h])).abs().max() > 2e-2


def test_no_gradient_moves_nothing_and_decay_is_as_set() -> None:
    """B = 0 gives A a gradient of 0 at the first step. Without a gradient w <- w (1 - rate decay); torch's 0.1 is not it."""
    start, none = drawn((4, 40)), torch.zeros(4, 40)
    assert torch.equal(stepped(start, [none, none]), start)
    assert torch.allclose(stepped(start, [none], weight_decay=0.5), 0.95 * start)


@pytest.mark.parametrize("name", ["inc_lora", "gain_lora_over_o", "lorac", "osf_full", "am_lora_nr"])
def test_who_is_moved_by_what(tiny: LoadedModel, name: str) -> None:
    """A and B of branches by Muon; gates, selectors, scalars and singular values by AdamW; without Muon all by AdamW."""
    params = CASES[name].params
    first = run_stage_in_memory(tiny, params, [make_toy_task(1), make_toy_task(2)], epochs=1)
    method = make_method(params, 2)
    method.install(tiny.backbone, first.state)
    try:
        named = {
            place: one for place, one in StageModule(tiny.backbone, method).named_parameters() if one.requires_grad
        }
        found = rules(named, MUON)
        by_muon = {place for place, rule in found.items() if rule == "muon"}
        assert by_muon == {
            place for place in named if place.endswith((".lora_A.branch.weight", ".lora_B.branch.weight"))
        }
        assert bool(found.keys() - by_muon) == (name != "inc_lora")
        optimizer = make_optimizer(named, MUON)
        assert isinstance(optimizer, MuonAndAdamW)
        held = [{id(one) for one in group["params"]} for group in optimizer.param_groups]
        wanted = [{id(named[place]) for place in by_muon}, {id(named[place]) for place in found.keys() - by_muon}]
        assert held == [one for one in wanted if one]
        assert set(rules(named, TrainSpec()).values()) == {"adamw"}
        assert type(make_optimizer(named, TrainSpec())) is torch.optim.AdamW
    finally:
        method.remove()


def test_which_methods_it_is_for() -> None:
    """Those with branches whose gradients stay whole; no soft prompts, no full weights, no masked or turned gradients."""
    able = {name for name in METHODS if method_params(name)().trains_matrices()}
    assert METHODS.keys() - able == {"seq_ft", "l2p", "lfpt5", "prog_prompt", "migu", "ogd", "gem"}
    assert not method_params("ewc").model_validate({"trains": "full"}).trains_matrices()


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_killed_stage_goes_on_with_both_rules(tiny: LoadedModel, engine: str) -> None:
    """From a checkpoint with momenta and moments, the log and the part are bit for bit those of an undisturbed stage."""
    tasks = [make_toy_task(1), make_toy_task(2)]
    settings = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "optimizer": "muon", "engine": engine, "log_every": 1}
    params = CASES["gain_lora_over_o"].params
    before = run_stage_in_memory(tiny, params, tasks, **settings)
    whole = run_stage_in_memory(tiny, params, tasks, before.state, **settings)
    memory = Memory()

    def run() -> Any:
        return run_one(tiny, Job(params, settings | {"checkpoint_every": 3}), tasks, before.state, partial=memory)

    with pytest.raises(Killed):
        run()
    part, log = run()
    assert memory.steps == [3] and len(log) == 6
    assert [one["loss"] for one in log] == [one["loss"] for one in whole.log]
    assert same_part(part, whole.part)
    plain = run_stage_in_memory(tiny, params, tasks, before.state, **settings | {"optimizer": "adamw"})
    assert not same_part(plain.part, whole.part)


@pytest.mark.parametrize("name", ["inc_lora", "sin_lora", "slao", "ella", "n_lora", "osf", "osf_full"])
def test_a_sequence_learns(tiny: LoadedModel, name: str) -> None:
    """At the rate of the shared matrix, task after task the loss falls to a third."""
    tasks = [make_toy_task(1), make_toy_task(2)]
    for result in run_sequence_in_memory(tiny, CASES[name].params, tasks, epochs=30, lr=1e-2, optimizer="muon"):
        assert result.log[-1]["loss"] < result.log[0]["loss"] / 3


def test_what_osf_protects_stays_under_muon(tiny: LoadedModel) -> None:
    """The projector is applied after the orthogonalised step: by construction."""
    part = run_stage_in_memory(tiny, CASES["osf"].params, [make_toy_task(1)], optimizer="muon").part.pair
    for path, a in part.a.items():
        _, _, v = torch.linalg.svd(tiny.backbone.model.get_submodule(path).weight.detach().double())
        assert (a.double() @ v[:3].T).norm() <= 1e-5 * a.norm()


def test_keys_know_it_only_where_it_acts() -> None:
    """AdamW's keys are what they were; Muon's scale is in none of them."""
    plain = TrainSpec().keyed(1)
    assert "optimizer" not in plain and "muon_scale" not in plain
    assert TrainSpec(muon_scale="original").keyed(1) == plain
    assert MUON.keyed(1) == plain | {"optimizer": "muon"}
    assert TrainSpec(optimizer="muon", muon_scale="original").keyed(1)["muon_scale"] == "original"
    assert not {"optimizer", "muon_scale"} & TrainSpec().model_dump().keys()
    assert MUON.model_dump()["optimizer"] == "muon"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_two_workers_move_alike(tiny_folders: Any, tmp_path_factory: Any, engine: str) -> None:
    """Each orthogonalises the averaged gradient for itself, to the same bits; the losses are one worker's.

    Torch's Newton-Schulz steps are in bf16, where a sum in another order turns into another last digit of eight bits.
    """
    tasks, settings = make_odd_tasks(), {"batch_size": 4, "engine": engine, "optimizer": "muon", "lr": 1e-3}
    job = Job(CASES["inc_lora"].params | {"dropout": 0.0}, settings, engine, tiny_folders["llama"])
    alone = run_job(load_tiny(tiny_folders["llama"], "fp32"), job, tasks)
    pair = Pair(tmp_path_factory.mktemp("pair"), [job], tasks)
    try:
        first, second = (pair.outcomes(engine, rank) for rank in (0, 1))
    finally:
        pair.stop()
    for one, mine, theirs in zip(alone, first, second, strict=True):
        assert one.losses == pytest.approx(mine.losses, abs=1e-3) and mine.losses == theirs.losses
        assert all(torch.equal(value, theirs.tensors[name]) for name, value in mine.tensors.items())


def test_sharded_matrices_are_no_matrices() -> None:
    """Past the check of a run's settings DeepSpeed refuses ZeRO with it: flat pieces are never taken as matrices."""
    module = nn.Module()
    module.lora_A = nn.ModuleDict({"branch": nn.Linear(6, 3, bias=False)})
    module.forward = lambda x: module.lora_A["branch"](x)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="untested ZeRO Optimizer"):
        engine = make_engine(
            Work(module, TrainSpec(optimizer="muon", zero_stage=2), BatchShape(1, 1, 1), False, Workers())
        )
        engine.backward(engine.loss(torch.ones(1, 6)).sum())
        engine.step(0.1)
