"""O-LoRA: the orthogonality loss by hand, its gradients, and what it does to the overlap."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.o_lora import LONG6_LAMBDA1, LONG6_LAMBDA2, OLora
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.probes import make_method, same_part
from tests.kit.cases import CASES, SHAPE

PARAMS = SHAPE | {"name": "o_lora", "rank": 2, "dropout": 0.0}


class Layer:
    """A stand-in for an adapted layer: a 2x3 A and a 2x2 B."""

    def __init__(self, a: list[list[float]], b: list[list[float]]) -> None:
        self.down, self.up = (torch.nn.Parameter(torch.tensor(values)) for values in (a, b))


def by_hand(stage: int = 2, **weights) -> OLora:
    """O-LoRA with two layers of known matrices and A_old = [[1, -2, 0]]."""
    method = make_method(PARAMS | weights, stage)
    layers = {
        "one": Layer([[1.0, 1.0, 5.0], [3.0, 0.0, 7.0]], [[3.0, 0.0], [0.0, 4.0]]),
        "two": Layer([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]),
    }
    cpu = type("Anything", (), {"device": torch.device("cpu")})
    method.branches = type("Anything", (), {"layers": layers, "backbone": cpu})
    method.old_a = {path: torch.tensor([[1.0, -2.0, 0.0]]) for path in layers}
    return method


def test_penalties_by_hand():
    """sum |A_old A_t^T| = |1 - 2| + |3| + |-4| + 0 = 8, norms = sqrt(85) + 5 + 2 + 0, each with its weight of the stage."""
    terms = by_hand(lambda1=[9.0, 0.5, 9.0], lambda2=[9.0, 0.1, 9.0]).penalties(None)
    assert {name: term.weight for name, term in terms.items()} == {"orthogonality": 0.5, "norm": 0.1}
    assert terms["orthogonality"].raw.item() == pytest.approx(8.0, abs=1e-6)
    assert terms["norm"].raw.item() == pytest.approx(85**0.5 + 7, abs=1e-5)


def test_gradients_of_the_penalties_by_hand():
    """d|A_old A_t^T| / dA_t are signed copies of A_old's rows; a zero B gets a zero gradient, not NaN."""
    method = by_hand(lambda1=1.0, lambda2=1.0)
    one, two = method.branches.layers["one"], method.branches.layers["two"]
    terms = method.penalties(None)
    terms["orthogonality"].raw.backward(retain_graph=True)
    assert one.down.grad.tolist() == [[-1.0, 2.0, 0.0], [1.0, -2.0, 0.0]]
    assert one.up.grad is None
    terms["norm"].raw.backward()
    assert not two.up.grad.any()
    assert torch.allclose(one.up.grad, torch.tensor([[0.6, 0.0], [0.0, 0.8]]))
    assert not any(old.requires_grad for old in method.old_a.values())


def test_the_overlap_is_fp32_under_autocast():
    """bf16 autocast does not round the products of the loss."""
    method = by_hand(lambda1=1.0)
    a = method.branches.layers["one"].down
    a.data[0, 0] += 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        value = method.penalties(None)["orthogonality"].raw
    assert value.dtype == torch.float32 and value.item() == pytest.approx(7.999, abs=1e-5)


def test_no_penalty_on_the_first_task(tiny):
    """Without earlier branches there is no orthogonality term, and without lambda2 no norm term."""
    for lambda2, names in ((0.0, set()), (0.5, {"norm"})):
        method = make_method(PARAMS | {"lambda2": lambda2})
        method.install(tiny.backbone, StageState())
        try:
            assert method.penalties(None).keys() == names
        finally:
            method.remove()


def test_penalty_of_a_state_is_the_sum_over_branches_and_layers(tiny, trained_pair):
    """Against two old branches the term is sum_layers sum_i sum |A_i A_t^T|, summed up branch by branch."""
    state = trained_pair
    method = make_method(CASES["o_lora"].params, 3)
    method.install(tiny.backbone, state)
    try:
        current, _ = method.branches.current()
        expected = sum((b.a[path] @ a.T).abs().sum().item() for b in state.branches for path, a in current.items())
        assert method.penalties(None)["orthogonality"].raw.item() == pytest.approx(expected, rel=1e-5)
    finally:
        method.remove()


def test_the_regulariser_alone_makes_the_overlap_fall(tiny, trained_pair):
    """Minimising only the penalty brings sum |A_old A_t^T| from its random start to under a fifth, old rows untouched."""
    state = trained_pair
    before = [{path: a.clone() for path, a in branch.a.items()} for branch in state.branches]
    method = make_method(CASES["o_lora"].params, 3)
    method.install(tiny.backbone, state)
    try:
        weights = [p for p in tiny.backbone.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.0)
        start = method.penalties(None)["orthogonality"].raw.item()
        for _ in range(150):
            optimizer.zero_grad()
            method.penalties(None)["orthogonality"].raw.backward()
            optimizer.step()
        assert method.penalties(None)["orthogonality"].raw.item() < start / 5
    finally:
        method.remove()
    for branch, kept in zip(state.branches, before, strict=True):
        assert all(torch.equal(branch.a[path], a) for path, a in kept.items())


def test_the_loss_lowers_the_overlap_in_training(tiny, toy_tasks, run_sequence):
    """A stage with lambda1 ends with a smaller overlap than the same stage without; the log shows raw and weighted."""
    overlaps = {}
    for weight in (0.0, 0.5):
        results = run_sequence(tiny, CASES["o_lora"].params | {"lambda1": weight, "lambda2": 0.0}, toy_tasks[:2])
        old, new = (result.part.branch.a for result in results)
        overlaps[weight] = sum((old[path] @ new[path].T).abs().sum().item() for path in old)
        terms = results[1].log[-1]["terms"]["orthogonality"]
        assert terms["weighted"] == pytest.approx(weight * terms["raw"])
        assert terms["ratio"] == pytest.approx(terms["weighted"] / results[1].log[-1]["loss"])
        assert results[0].log[-1]["terms"] == {}
    assert overlaps[0.5] < overlaps[0.0] / 2


def test_without_weights_it_is_inc_lora(tiny, toy_tasks, run_sequence):
    """lambda1 = lambda2 = 0 trains bit for bit IncLoRA's branches, over three tasks."""
    ours = run_sequence(tiny, CASES["o_lora"].params | {"lambda1": 0.0, "lambda2": 0.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks)
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))


def test_order_6_settings_name_every_stage():
    """The released script's weights have one value per task of order 6."""
    assert len(LONG6_LAMBDA1) == len(LONG6_LAMBDA2) == 15
    assert len(OLora.settings("t5", "long-6")["train"]["epochs"]) == 15
    assert len(OLora.settings("llama", "std-1")["train"]["lr"]) == 4


@pytest.fixture
def trained_pair(tiny) -> StageState:
    """Two random earlier branches of the tiny model, as parts."""
    shapes = {
        path: (module.in_features, module.out_features)
        for path, module in tiny.backbone.model.named_modules()
        if path.rsplit(".", 1)[-1] in tiny.backbone.targets
    }
    parts = []
    for name in ("one", "two"):
        a = {path: torch.randn(4, d_in) / d_in**0.5 for path, (d_in, _) in shapes.items()}
        b = {path: torch.randn(d_out, 4) for path, (_, d_out) in shapes.items()}
        parts.append(StagePart(name, Branch(4, 16.0, a, b)))
    return StageState(tuple(parts))
