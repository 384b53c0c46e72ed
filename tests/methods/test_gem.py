"""GEM and A-GEM: the projection against its primal problem, the memory's gradients, and what steps then do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from raycl.adapters.gradient_cone import multipliers
from raycl.errors import SpecError
from raycl.methods.common.base import Gradients
from raycl.methods.common.flat import Flat
from raycl.methods.gem import Gem
from raycl.sequence.resolve import resolve
from raycl.testing.probes import make_method
from raycl.testing.ranks import FEW, Job, assert_a_pair_does_what_one_does, make_odd_tasks
from raycl.testing.toys import run_stage_in_memory
from raycl.train.module import StageModule
from tests.kit.cases import CASES

PARAMS, AVERAGE = (CASES[name].params | {"dropout": 0.0} for name in ("gem", "gem_average"))


def turned(gradient, earlier):
    """The nearest gradient that opposes none."""
    return gradient + multipliers(gradient, earlier) @ earlier


def test_the_projection_by_hand():
    """g = (1, -2): against e = (0, 3) it loses its part along e; (1, 1) and (-1, 2) leave only their cone's edge or 0."""
    g = torch.tensor([1.0, -2.0])
    assert turned(g, torch.tensor([[0.0, 3.0]])).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert turned(g, torch.tensor([[1.0, 1.0]])).tolist() == pytest.approx([1.5, -1.5])
    assert turned(g, torch.tensor([[1.0, 1.0], [-1.0, 2.0]])).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert turned(g, torch.tensor([[1.0, 0.0], [2.0, 1.0]])).tolist() == g.tolist()


def test_the_projection_is_the_nearest_that_obeys():
    """Against a solver of the primal problem; sizes of the rows, rows given twice and rows of zeros do not matter."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        g, earlier = torch.randn(6, generator=draw), torch.randn(3, 6, generator=draw)
        rows = earlier.double().numpy()
        limits = {"type": "ineq", "fun": lambda x, rows=rows: rows @ x, "jac": lambda x, rows=rows: rows}
        target = g.double().numpy()
        found = minimize(
            lambda x, y=target: 0.5 * np.sum((x - y) ** 2),
            target,
            jac=lambda x, y=target: x - y,
            constraints=limits,
            options={"ftol": 1e-14},
        ).x
        new = turned(g, earlier)
        assert torch.allclose(new, torch.from_numpy(found).float(), atol=1e-4)
        assert (earlier @ new >= -1e-5).all()
        other = torch.cat([earlier * torch.tensor([[1e-6], [1.0], [1e5]]), earlier[:1], torch.zeros(1, 6)])
        assert torch.allclose(turned(g, other), new, atol=1e-4)


def test_one_constraint_is_the_closed_form():
    """A-GEM: v = max(0, -<g, m> / <m, m>)."""
    draw = torch.Generator().manual_seed(1)
    for sign in (1, -1):
        g, m = torch.randn(5, generator=draw), torch.randn(5, generator=draw)
        m = m if sign * (g @ m) > 0 else -m
        assert multipliers(g, m[None]).item() == pytest.approx(max(0.0, -float(g @ m / (m @ m))), rel=1e-5)
    assert multipliers(torch.zeros(5), m[None]).tolist() == [0.0]


def test_the_hook_by_hand():
    """Twelve tokens counted, three of them the task's own: the gradient of their mean is 4 g; it opposes the second row."""
    method = make_method(PARAMS, 3)
    weight = torch.nn.Parameter(torch.zeros(2))
    method.flat = Flat({"w": weight})
    method.earlier, method.tokens = torch.tensor([[1.0, 1.0], [0.0, 5.0]]), torch.tensor([12.0, 3.0])
    written, summed = {}, []
    method.gradients(Gradients({weight: torch.tensor([1.0, -0.5])}.get, written.__setitem__, summed.extend))
    assert written[weight].tolist() == pytest.approx([4.0, 0.0], abs=1e-6)
    assert method.measures() == {"gem_opposed": 0.5}
    assert [tensor.shape for tensor in summed] == [(2, 2), (2,)]
    assert not method.earlier.any() and not method.tokens.any()


class Watched(Gem):
    """GEM that notes what its steps see."""

    def install(self, backbone, state):
        super().install(backbone, state)
        self.seen = []

    def penalties(self, step):
        terms = super().penalties(step)
        self.inputs = [*getattr(self, "inputs", []), step.inputs]
        return terms

    def gradients(self, gradients):
        values = self.flat.values()
        earlier, tokens, before = self.earlier.clone(), self.tokens.clone(), self.flat.gradient(gradients.get)
        super().gradients(gradients)
        after = self.flat.gradient(gradients.get)
        self.seen.append((values, earlier, tokens, before, after, self.inputs))
        self.inputs = []


def watched(tiny, tasks, state, params, **train):
    """The steps of the stage after `state`."""
    method = make_method(params, state.stage + 1)
    method = Watched(method.params, method.info)
    run_stage_in_memory(tiny, method, tasks, state, **{"lr": 1e-2, "epochs": 1, "batch_size": 8} | train)
    return method.seen


@pytest.fixture(scope="module")
def state(tiny, toy_tasks, run_sequence):
    """After two stages."""
    return run_sequence(tiny, PARAMS, toy_tasks[:2])[-1].state


def test_gradients_are_those_of_the_rows(tiny, toy_tasks, state):
    """At the first step: g_k is the gradient of -log p summed over the memory's rows of task k in the batch, g that of the
    token mean over the task's own rows, each by a pass of its own; what is written obeys every g_k."""
    _, earlier, tokens, before, after, (inputs,) = watched(tiny, toy_tasks, state, PARAMS)[0]
    method = make_method(PARAMS, 3)
    method.install(tiny.backbone, state)
    module = StageModule(tiny.backbone, method)
    try:
        assert set(inputs.stages.tolist()) == {0, 1, 2}, "the batch has rows of all tasks"
        for stage in (0, 1, 2):
            rows = (inputs.stages == stage).nonzero().flatten()
            some = inputs.rows(rows)
            loss = torch.nn.functional.cross_entropy(
                module.predict(some)[0].flatten(0, 1), module.predict(some)[1].flatten(), reduction="sum"
            )
            found = method.flat.joined(torch.autograd.grad(loss, list(method.flat.weights.values())))
            if stage:
                assert torch.allclose(found, earlier[stage - 1], rtol=1e-4, atol=1e-5 * found.abs().max())
                assert earlier[stage - 1] @ after >= -1e-4 * earlier[stage - 1].norm() * after.norm()
            else:
                mean = before * tokens[0] / tokens[1]
                assert torch.allclose(found / tokens[1], mean, rtol=1e-4, atol=1e-5 * mean.abs().max())
                assert torch.allclose(after, turned(mean, earlier), atol=1e-6 * mean.abs().max())
    finally:
        method.remove()


def test_one_average_is_the_sum_of_all(tiny, toy_tasks, state):
    """A-GEM's constraint at the first step is the sum of GEM's."""
    each, one = (watched(tiny, toy_tasks, state, params)[0] for params in (PARAMS, AVERAGE))
    assert one[1].shape[0] == 1
    assert torch.allclose(each[1].sum(dim=0), one[1][0], rtol=1e-4, atol=1e-5 * one[1].abs().max())


@pytest.mark.parametrize(
    "cut",
    [{"micro_batch_size": 2}, {"engine": "deepspeed"}, {"micro_batch_size": 4, "zero_stage": 2}, {"zero_stage": 1}],
)
def test_micro_batches_and_zero_stages_take_the_same_steps(tiny, toy_tasks, state, cut):
    """Gradients, those on the memory and those that are written are the same however a step is taken."""
    plain, other = (watched(tiny, toy_tasks, state, PARAMS, lr=1e-3, **how) for how in ({}, cut))
    assert len(plain) == len(other) == 6
    for mine, theirs in zip(plain, other, strict=True):
        for a, b in zip(mine[1:5], theirs[1:5], strict=True):
            assert (a - b).norm() <= 1e-3 * a.norm()


@pytest.mark.parametrize(("params", "most"), [(PARAMS, 2), (AVERAGE, 1)], ids=["gem", "a-gem"])
def test_a_step_passes_once_more_for_each_constraint(tiny, toy_tasks, state, params, most):
    """Over the rows of memory in the batch alone, and not at all where it has none."""
    rows = []
    hook = tiny.backbone.model.register_forward_pre_hook(
        lambda model, args, fed: rows.append(len(fed["input_ids"])), with_kwargs=True
    )
    try:
        steps = watched(tiny, toy_tasks, state, params, seed=3)
    finally:
        hook.remove()
    for *_, (inputs,) in steps:
        stages = torch.zeros(8) if inputs.stages is None else inputs.stages
        found = [int((stages == stage).sum()) for stage in (1, 2)]
        wanted = [sum(found)] if most == 1 else found
        wanted = [8, *(count for count in wanted if count)]
        assert rows[: len(wanted)] == wanted
        rows = rows[len(wanted) :]
    assert not rows


def test_an_epoch_goes_through_the_memory_as_often_as_is_said(tiny, toy_tasks, state):
    """Eight of a task's sixteen rows are kept; their rows carry the task's stage and weigh nothing."""
    method = make_method(PARAMS | {"repeats": 3}, 3)
    method.install(tiny.backbone, state)
    try:
        rows = method.examples(toy_tasks[2].train, None)
    finally:
        method.remove()
    counts = {stage: [row.weight for row in rows if row.stage == stage] for stage in (0, 1, 2)}
    assert counts == {0: [1.0] * 16, 1: [0.0] * 24, 2: [0.0] * 24}
    assert len(method.facts()["memory"]) == 8


def test_a_stage_without_memory_is_sin_loras(tiny, toy_tasks, run_stage):
    """The first one has the same branch, bit for bit."""
    ours, plain = (
        run_stage(tiny, params, toy_tasks).part for params in (PARAMS, CASES["sin_lora"].params | {"dropout": 0.0})
    )
    assert all(torch.equal(ours.branch.b[path], plain.branch.b[path]) for path in plain.branch.b)


def test_a_plain_step_raises_no_loss_on_the_memory(tiny, toy_tasks, state):
    """Where the gradient opposes the memory's of some task, a small step against it raises that task's loss on the rows of
    the batch; one against what is written raises none."""
    steps = watched(tiny, toy_tasks, state, PARAMS, epochs=3)
    values, earlier, _, before, after, (inputs,) = next(step for step in steps if (step[1] @ step[3] < 0).any())
    method = make_method(PARAMS, 3)
    method.install(tiny.backbone, state)
    module = StageModule(tiny.backbone, method).eval()

    def losses(vector):
        for name, piece in method.flat.pieces(vector).items():
            method.flat.weights[name].data = piece.view(method.flat.shapes[name]).clone()
        with torch.no_grad():
            each = [module(replace(inputs.rows(inputs.stages == stage), weights=None))[0] for stage in (1, 2)]
        return torch.stack(each).double()

    try:
        start = losses(values)
        plain, turned_ = (losses(values - 1e-3 * g / g.norm()) - start for g in (before, after))
    finally:
        method.remove()
    opposed = earlier @ before < 0
    assert (plain[opposed] > 0).all() and (turned_ < 0.2 * plain[opposed].max()).all()


def test_zero_3_and_muon_are_refused():
    """By name, with the next step, before anything starts."""
    for settings, words in (
        ({"zero_stage": 3}, r"train\.zero_stage: gem works with 0, 1 or 2 \(now 3\).*lower it"),
        ({"optimizer": "muon"}, r"train\.optimizer: 'muon'.*gem"),
    ):
        with pytest.raises(SpecError, match=words):
            resolve("laptop", [{"order": "demo", "method": {"name": "gem"}, "train": settings}], gpus=0)


@pytest.mark.slow
def test_two_workers_at_zero_2_do_what_one_does(tiny_folders, tmp_path):
    """Though only one of them may have rows of memory to pass over, in a micro-batch of one row."""
    job = Job(PARAMS, FEW | {"micro_batch_size": 1, "zero_stage": 2}, folder=tiny_folders["llama"])
    assert_a_pair_does_what_one_does(tmp_path, [job], make_odd_tasks())
