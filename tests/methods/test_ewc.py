"""EWC: the penalty and both kinds of importance by hand, and what they do to training."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from raycl.adapters.importance import MeanSquare
from raycl.methods.common.base import Gradients
from raycl.methods.ewc import FISHER, Ewc
from raycl.testing.probes import batch_of, make_method
from raycl.train.module import StageModule
from tests.kit.cases import CASES

LORA, FULL, HISTORY = (CASES[name].params for name in ("ewc", "ewc_full", "ewc_history"))


def by_hand(stage=2, **values):
    """EWC on one 2 x 2 weight matrix, with F = [[1, 2], [3, 0]] and theta* = 0."""
    method = make_method({"name": "ewc", **values}, stage)
    matrix = torch.nn.Parameter(torch.tensor([[1.0, -1.0], [2.0, 9.0]]))
    method.trainee = SimpleNamespace(parameters=lambda: {"w": matrix})
    method.weight = method.params.weight
    method.squares = {"w": MeanSquare(matrix)}
    method.fisher = {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])} if stage > 1 else {}
    method.anchor = {"w": torch.zeros(2, 2)} if stage > 1 else {}
    return method, matrix


def fisher_of(part):
    """The importance in a part, by the weights' names."""
    return {name.removeprefix(FISHER): value for name, value in part.tensors.items() if name.startswith(FISHER)}


def weights_of(part):
    """The trained weights in a part, under the same names."""
    if part.branch is None:
        return {name.removeprefix("weights/"): w for name, w in part.tensors.items() if name.startswith("weights/")}
    return {f"a {path}": a for path, a in part.branch.a.items()} | {f"b {path}": b for path, b in part.branch.b.items()}


def test_the_penalty_by_hand():
    """(1 * 1 + 2 * 1 + 3 * 4 + 0 * 81) / 2 = 7.5, weighted by lambda; its gradient is F (theta - theta*)."""
    method, matrix = by_hand(weight=100.0)
    term = method.penalties(None)["ewc"]
    assert (term.raw.item(), term.weight) == (7.5, 100.0)
    term.raw.backward()
    assert matrix.grad.tolist() == [[1.0, -2.0], [6.0, 0.0]]
    assert by_hand(stage=1)[0].penalties(None) == {}


def test_fisher_of_a_linear_softmax_by_hand():
    """For -log softmax(W x)_y the gradient is (p - e_y) x^T: with W = 0, (1, 2) -> 0 and (0, 2) -> 1 square and average
    to [[1/8, 1], [1/8, 1]]."""
    method, matrix = by_hand()
    matrix.data.zero_()
    for x, y in (([1.0, 2.0], 0), ([0.0, 2.0], 1)):
        matrix.grad = None
        loss = torch.nn.functional.cross_entropy(matrix @ torch.tensor(x), torch.tensor(y))
        loss.backward()
        method.observe_gradients()
    assert torch.allclose(method.squares["w"].value, torch.tensor([[0.125, 1.0], [0.125, 1.0]]))


@pytest.mark.parametrize("family", ["llama"], indirect=True)  # T5's output layer is tied to its embeddings
def test_fisher_of_the_output_layer_is_the_analytic_one(tiny, family, toy_tasks, run_stage):
    """Over the whole pass: F of Llama's last layer is the mean over examples of (sum over answer tokens (p - e_y) h^T)^2."""
    part = run_stage(tiny, FULL, toy_tasks).part
    weights = weights_of(part)
    head = weights["lm_head.weight"]
    expected = torch.zeros_like(head)
    method = make_method(FULL, 2)
    method.install(tiny.backbone, SimpleNamespace(last=part))
    hidden = []
    hook = tiny.backbone.model.lm_head.register_forward_pre_hook(lambda module, args: hidden.append(args[0].detach()))
    try:
        for example in toy_tasks[0].train:
            hidden.clear()
            inputs = batch_of(tiny, [example])
            with torch.no_grad():
                tiny.backbone.model(input_ids=inputs.ids, attention_mask=inputs.mask)
            answers = (inputs.labels[0] != -100).nonzero()[:, 0]
            states = hidden[0][0, answers - 1]
            errors = (states @ head.T).softmax(dim=1)
            errors[range(len(answers)), inputs.labels[0, answers]] -= 1
            expected += (errors.T @ states).square() / len(toy_tasks[0].train)
    finally:
        hook.remove()
        method.remove()
    assert expected.max() > 0
    assert (fisher_of(part)["lm_head.weight"] - expected).abs().max() <= 1e-4 * expected.max()


def test_the_history_by_hand():
    """Gradients g of two global batches, less lambda F (theta - theta*) = 10 * [[1, -2], [6, 0]]: squared and averaged."""
    method, matrix = by_hand(weight=10.0, importance="history")
    for extra in (1.0, 3.0):
        gradient = torch.tensor([[10.0, -20.0], [60.0, 0.0]]) + extra
        method.gradients(Gradients({matrix: gradient}.get, None, None))
    assert method.squares["w"].value.tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert {name: value.shape for name, value in method.running().items()} == {"total/w": (2, 2), "count/w": ()}


def test_the_history_of_one_step_is_the_squared_gradient_of_its_loss(tiny, toy_tasks, run_stage):
    """One step on all rows: F_1 is the square of the gradient of the mean loss per answer token, where training began."""
    examples = toy_tasks[0].train
    params = HISTORY | {"dropout": 0.0}
    part = run_stage(tiny, params, toy_tasks, batch_size=len(examples), epochs=1).part
    method = make_method(params)
    method.install(tiny.backbone, SimpleNamespace(last=None))
    try:
        inputs = batch_of(tiny, examples)
        loss = StageModule(tiny.backbone, method).eval()(inputs)[0] / (inputs.labels != -100).sum()
        loss.backward()
        expected = {name: p.grad.square() for name, p in method.trainee.parameters().items()}
    finally:
        method.remove()
    for name, value in fisher_of(part).items():
        assert (value - expected[name]).abs().max() <= 1e-5 * max(e.max() for e in expected.values())
        assert value.any() == name.startswith("b ")


@pytest.mark.parametrize("params", [LORA, FULL, HISTORY], ids=["fisher", "full", "history"])
def test_importance_is_never_negative_and_covers_every_weight(tiny, toy_tasks, run_sequence, params):
    """One F per trained weight, in its shape; gamma = 1 only ever adds to it."""
    first, second = (result.part for result in run_sequence(tiny, params, toy_tasks[:2]))
    for part in (first, second):
        fisher, weights = fisher_of(part), weights_of(part)
        assert {name: value.shape for name, value in fisher.items()} == {n: w.shape for n, w in weights.items()}
        assert all((value >= 0).all() for value in fisher.values()) and any(value.any() for value in fisher.values())
    older = fisher_of(first)
    assert all((value >= older[name]).all() for name, value in fisher_of(second).items())


def test_gamma_keeps_a_share_of_the_older_importance(tiny, toy_tasks, run_stage):
    """F_2(gamma) - F_2(0) = gamma F_1; gamma never enters the training of its own stage."""
    first = run_stage(tiny, LORA, toy_tasks)
    old = fisher_of(first.part)
    with_half, with_none = (
        run_stage(tiny, LORA | {"gamma": gamma}, toy_tasks, first.state).part for gamma in (0.5, 0.0)
    )
    half, none = fisher_of(with_half), fisher_of(with_none)
    for name in old:
        assert torch.allclose(half[name], none[name] + 0.5 * old[name], rtol=1e-5)
        assert torch.equal(weights_of(with_half)[name], weights_of(with_none)[name])


@pytest.mark.parametrize("importance", ["fisher", "history"])
@pytest.mark.parametrize(("params", "plain"), [(LORA, "sin_lora"), (FULL, "seq_ft")], ids=["lora", "full"])
def test_without_weight_it_is_the_plain_method(tiny, toy_tasks, run_sequence, params, plain, importance):
    """lambda = 0 trains bit for bit SinLoRA's branch, or SeqFT's weights; at stage 1 any lambda does."""
    ours = run_sequence(tiny, params | {"weight": [9.0, 0.0, 0.0], "importance": importance}, toy_tasks)
    theirs = run_sequence(tiny, CASES[plain].params, toy_tasks)
    for mine, other in zip(ours, theirs, strict=True):
        expected = weights_of(other.part)
        assert all(torch.equal(value, expected[name]) for name, value in weights_of(mine.part).items())


@pytest.mark.parametrize("params", [LORA, FULL, HISTORY], ids=["fisher", "full", "history"])
def test_the_penalty_starts_at_zero_and_holds_weights_back(tiny, toy_tasks, run_stage, params):
    """The first step of stage 2 has penalty 0 exactly; a large lambda leaves important weights nearer to theta*."""
    first = run_stage(tiny, params, toy_tasks, epochs=1)
    assert all(record["terms"] == {} for record in first.log)
    fisher, anchor = fisher_of(first.part), weights_of(first.part)
    moves = {}
    for weight in (0.0, 1e4):
        result = run_stage(tiny, params | {"weight": weight}, toy_tasks, first.state)
        weights = weights_of(result.part)
        moves[weight] = sum((fisher[name] * (weights[name] - anchor[name]).square()).sum().item() for name in anchor)
    assert result.log[0]["terms"]["ewc"]["raw"] == 0.0
    assert result.log[-1]["terms"]["ewc"]["raw"] > 0.0
    assert moves[1e4] < moves[0.0] / 2


def test_an_older_engine_does_not_take_the_gradients_away(tiny, toy_tasks, run_stage, monkeypatch):
    """The optimizer engine of stage 1 may be collected at any time in stage 2, which trains the same parameters."""
    follow = Ewc.gradients

    def late(self, gradients):
        gc.collect()
        follow(self, gradients)

    params = FULL | {"importance": "history"}
    fishers = {}
    for zero in (0, 2):
        few = {"zero_stage": zero, "epochs": 1}
        gc.disable()
        try:
            first = run_stage(tiny, params, toy_tasks, **few)
            with monkeypatch.context() as patched:
                patched.setattr(Ewc, "gradients", late)
                fishers[zero] = fisher_of(run_stage(tiny, params, toy_tasks, first.state, **few).part)
        finally:
            gc.enable()
    for name, value in fishers[0].items():
        assert (value - fishers[2][name]).norm() <= 1e-2 * value.norm(), name


def test_published_settings_train_all_weights():
    """The rows of the tables regularise the whole model."""
    for family in ("t5", "llama"):
        assert make_method({"name": "ewc"}).settings(family, "std-1")["method"] == {"trains": "full", "weight": 400.0}
