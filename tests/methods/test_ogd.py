"""OGD: what the directions span, the projection by hand, and what steps along it leave as it was."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.gradient_space import Sketch, content, orthonormal
from raycl.errors import SpecError
from raycl.methods.common.base import Gradients
from raycl.methods.common.flat import Flat
from raycl.methods.ogd import Ogd
from raycl.sequence.resolve import resolve
from raycl.testing.probes import batch_of, make_method, padded, same_part
from raycl.testing.toys import run_stage_in_memory
from raycl.train.module import StageModule
from tests.kit.cases import CASES

PARAMS = CASES["ogd"].params | {"dropout": 0.0}
CPU = torch.device("cpu")


def basis_of(part):
    """A part's directions by weight."""
    return {name.removeprefix("basis/"): rows for name, rows in part.tensors.items() if name.startswith("basis/")}


def by_hand(basis):
    """OGD at stage 2 on two weights of one and two numbers, with known directions."""
    method = make_method(PARAMS, 2)
    weights = {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.zeros(2, 1))}
    method.flat, method.basis = Flat(weights), basis
    method.start = method.flat.values()
    return method, weights


def test_the_projection_by_hand():
    """g = (3, 0, 5) loses its part along (0.6, 0.8, 0), 1.8 times that: (1.92, -1.44, 5) is left."""
    method, weights = by_hand(torch.tensor([[0.6], [0.8], [0.0]]))
    gradient = {weights["a"]: torch.tensor([3.0]), weights["b"]: torch.tensor([[0.0], [5.0]])}
    method.gradients(Gradients(gradient.get, gradient.__setitem__, None))
    assert gradient[weights["a"]].tolist() == pytest.approx([1.92])
    assert gradient[weights["b"]].flatten().tolist() == pytest.approx([-1.44, 5.0])
    weights["b"].data = torch.tensor([[1.0], [0.0]])
    found = method.measures()
    assert found["ogd_dims"] == 1 and found["ogd_leak"] == pytest.approx(0.8)
    assert found["ogd_removed"] == pytest.approx(1.8 / 34**0.5)


def test_a_weight_without_a_gradient_counts_as_zeros():
    """And is written all the same: what others lose may lie in it."""
    method, weights = by_hand(torch.tensor([[0.6], [0.8], [0.0]]))
    gradient = {weights["b"]: torch.tensor([[5.0], [0.0]])}
    method.gradients(Gradients(gradient.get, gradient.__setitem__, None))
    assert gradient[weights["a"]].tolist() == pytest.approx([-2.4])
    assert gradient[weights["b"]].flatten().tolist() == pytest.approx([1.8, 0.0])


def test_new_directions_are_outside_the_old_ones():
    """(1, 1, 0) beside e_1 adds e_2; what the old ones span, or a thousandth of the rest, adds nothing."""
    old = torch.tensor([[1.0], [0.0], [0.0]])
    new = orthonormal(torch.tensor([[1.0, 3.0], [1.0, 0.0], [0.0, 1e-4]]), old)
    assert new.shape == (3, 1) and new.abs().flatten().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-4)
    assert orthonormal(old * 2, old).shape == (3, 0)
    assert orthonormal(torch.zeros(3, 2), old).shape == (3, 0)
    draw = torch.Generator().manual_seed(0)
    base = orthonormal(torch.randn(40, 5, generator=draw), torch.zeros(40, 0))
    more = torch.cat([base, orthonormal(torch.randn(40, 7, generator=draw), base)], dim=1)
    assert torch.allclose(more.T @ more, torch.eye(12), atol=1e-6)


def test_a_sketch_spans_what_was_added_whoever_added_it():
    """Four vectors of lengths far apart: as many directions, the same for one worker and for the sum of two."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 30, generator=draw) * torch.tensor([[1e-3], [1.0], [1e3], [1e3]])
    whole, halves = Sketch(30, 6, CPU), [Sketch(30, 6, CPU), Sketch(30, 6, CPU)]
    for index, vector in enumerate(vectors):
        for sketch in (whole, halves[index % 2]):
            sketch.add(vector, torch.Generator().manual_seed(index))
    new = orthonormal(whole.total, torch.zeros(30, 0))
    assert new.shape == (30, 4) and whole.count == 4
    units = vectors / vectors.norm(dim=1, keepdim=True)
    assert torch.allclose(new @ (new.T @ units.T), units.T, atol=1e-4)
    assert torch.allclose(halves[0].total + halves[1].total, whole.total, atol=1e-6)


def test_an_example_is_known_by_its_tokens(tiny, toy_tasks):
    """Whatever its padding; another answer is another example."""
    first, other = toy_tasks[0].train[:2]
    inputs = batch_of(tiny, [first])
    names = {content(inputs), content(padded(inputs, 0, 2, 3))}
    assert len(names) == 1 and content(batch_of(tiny, [other])) not in names


def gradients_of(tiny, state, stage, examples):
    """The gradients of -log p of examples at the weights after `state`, each by a pass of its own, (P, n)."""
    method = make_method(PARAMS, stage)
    method.install(tiny.backbone, state)
    module = StageModule(tiny.backbone, method).eval()
    try:
        found = []
        for example in examples:
            module.zero_grad()
            module(batch_of(tiny, [example]))[0].backward()
            found.append(method.flat.gradient(lambda weight: weight.grad))
        return torch.stack(found, dim=1), method.flat, method.basis
    finally:
        module.zero_grad()
        method.remove()


def test_what_is_kept_spans_the_examples_gradients(tiny, toy_tasks, run_sequence):
    """With as many examples as the task has, four of them different, each stage keeps orthonormal directions that hold every
    example's gradient at its own end; they are rows by weight."""
    results = run_sequence(tiny, PARAMS | {"examples": 16}, toy_tasks[:2])
    kept = []
    for stage, result in enumerate(results, start=1):
        found, flat, _ = gradients_of(tiny, result.state, stage + 1, toy_tasks[stage - 1].train[:4])
        pieces = basis_of(result.part)
        assert pieces.keys() == flat.weights.keys()
        new = flat.whole(pieces)
        assert 1 <= new.shape[1] <= 4
        kept.append(new)
        basis = torch.cat(kept, dim=1)
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)
        units = found / found.norm(dim=0)
        assert (units - basis @ (basis.T @ units)).norm(dim=0).max() <= 5e-3


class Watched(Ogd):
    """OGD that notes the gradients before and after its projection."""

    def install(self, backbone, state):
        super().install(backbone, state)
        self.seen = []

    def gradients(self, gradients):
        before = self.flat.gradient(gradients.get)
        super().gradients(gradients)
        self.seen.append((before, self.flat.gradient(gradients.get)))


@pytest.fixture(scope="module")
def state(tiny, toy_tasks, run_sequence):
    """After two stages."""
    return run_sequence(tiny, PARAMS, toy_tasks[:2])[-1].state


@pytest.mark.parametrize("how", [{}, {"micro_batch_size": 2}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}])
def test_every_engine_projects_the_whole_gradient(tiny, toy_tasks, state, how):
    """What is written is g - Q Q^T g, in the directions of both earlier tasks, at every ZeRO stage."""
    made = make_method(PARAMS, 3)
    method = Watched(made.params, made.info)
    result = run_stage_in_memory(tiny, method, toy_tasks, state, lr=1e-3, epochs=1, batch_size=8, **how)
    assert len(method.seen) == 2
    for before, after in method.seen:
        assert torch.allclose(after, before - method.basis @ (method.basis.T @ before), atol=1e-5 * before.abs().max())
        assert (method.basis.T @ after).abs().max() <= 1e-5 * before.norm() and not torch.equal(before, after)
    gauges = result.log[-1]["gauges"]
    assert gauges["ogd_dims"] == method.basis.shape[1] >= 2
    assert 0 < gauges["ogd_removed"] <= 1 and 0 <= gauges["ogd_leak"] <= 1


def test_a_plain_step_leaves_the_examples_as_they_were(tiny, toy_tasks, run_sequence):
    """Against the second task's gradient a small step changes log p of the first task's examples; against what is left of it
    outside the directions far less."""
    first = run_sequence(tiny, PARAMS | {"examples": 16}, toy_tasks[:1])[0]
    found, flat, basis = gradients_of(tiny, first.state, 2, toy_tasks[1].train[:8])
    g = found.sum(dim=1)
    method = make_method(PARAMS, 2)
    method.install(tiny.backbone, first.state)
    module, inputs = StageModule(tiny.backbone, method).eval(), batch_of(tiny, toy_tasks[0].test)

    def said(vector):
        for name, piece in method.flat.pieces(vector).items():
            method.flat.weights[name].data = piece.view(method.flat.shapes[name]).clone()
        with torch.no_grad():
            return torch.stack([module(inputs.rows(torch.tensor([i])))[0] for i in range(len(inputs.ids))]).double()

    try:
        start = method.flat.values()
        steps = (torch.zeros_like(g), g, g - basis @ (basis.T @ g))
        before, plain, kept = (said(start - 1e-3 * step / g.norm()) for step in steps)
    finally:
        method.remove()
    assert flat.size == len(g)
    assert (kept - before).abs().max() <= 0.2 * (plain - before).abs().max()


def test_the_first_stage_is_sin_loras(tiny, toy_tasks, run_stage):
    """It is guarded from nothing: the same branch, bit for bit, whatever is kept after it."""
    ours = run_stage(tiny, PARAMS, toy_tasks).part
    plain = run_stage(tiny, CASES["sin_lora"].params | {"dropout": 0.0}, toy_tasks).part
    assert same_part(type(ours)(ours.task, ours.branch, {}, ours.facts), plain)


def test_muon_is_refused():
    """It would orthogonalise what was projected."""
    with pytest.raises(SpecError, match=r"train\.optimizer: 'muon'.*ogd"):
        resolve("laptop", [{"order": "demo", "method": {"name": "ogd"}, "train": {"optimizer": "muon"}}], gpus=0)
