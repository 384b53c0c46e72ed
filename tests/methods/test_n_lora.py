"""N-LoRA: the norm of the update by hand, that of the release beside it, and what it does to small entries."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.n_lora import NLora, delta_l1
from raycl.state.stage_state import StageState
from raycl.testing.probes import make_method, same_part
from tests.kit.cases import CASES

PARAMS = CASES["n_lora"].params


class Layer:
    """A stand-in for an adapted layer."""

    def __init__(self, down: list[list[float]], up: list[list[float]]) -> None:
        self.down, self.up = (torch.nn.Parameter(torch.tensor(value)) for value in (down, up))


def by_hand(*layers: Layer, **params) -> NLora:
    """N-LoRA at stage 2 with layers of known matrices."""
    method = make_method(PARAMS | params, 2)
    cpu = type("Anything", (), {"device": torch.device("cpu")})
    known = {"layers": {f"layer{i}": one for i, one in enumerate(layers)}, "backbone": cpu}
    method.branches = type("Anything", (), known)
    return method


def test_the_penalty_by_hand():
    """B A = [[2], [1]] [[1, -2]] = [[2, -4], [1, -2]] sums up to 9, and A B = 2 - 2 = 0: the release's norm sees nothing."""
    layer = Layer([[1.0, -2.0]], [[2.0], [1.0]])
    term = by_hand(layer, layer, sparsity=[9.0, 0.25, 9.0]).penalties(None)["sparsity"]
    assert term.weight == 0.25 and term.raw.item() == pytest.approx(2 * 9.0)
    assert by_hand(layer, penalty="ab_l1").penalties(None)["sparsity"].raw.item() == 0
    assert by_hand(layer, sparsity=0.0).penalties(None) == {}


def test_the_gradients_by_hand():
    """With signs S = [[1, -1], [1, -1]]: dB = S A^T = (3, 3), dA = B^T S = (3, -3); fp32 under autocast."""
    layer = Layer([[1.0, -2.0]], [[2.0], [1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        raw = by_hand(layer).penalties(None)["sparsity"].raw
    raw.backward()
    assert raw.dtype == torch.float32
    assert layer.up.grad.flatten().tolist() == pytest.approx([3.0, 3.0])
    assert layer.down.grad.flatten().tolist() == pytest.approx([3.0, -3.0])


def test_modules_need_not_be_square_but_for_the_release(tiny):
    """The update of (d_out, d_in) has a norm for any of them; the release's is refused by name where there is none."""
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 5, generator=draw), torch.randn(3, 2, generator=draw)
    assert delta_l1(down, up).item() == pytest.approx((up @ down).abs().sum().item())
    method = make_method(PARAMS | {"penalty": "ab_l1"}, 1)
    widths = {
        (m.in_features, m.out_features) for path, m in tiny.backbone.model.named_modules() if _adapted(tiny, path)
    }
    try:
        if any(d_in != d_out for d_in, d_out in widths):
            with pytest.raises(ValueError, match=r"method\.penalty: ab_l1 .*take delta_l1"):
                method.install(tiny.backbone, StageState())
        else:
            method.install(tiny.backbone, StageState())
    finally:
        method.remove()


def test_the_norm_falls_in_training(tiny, toy_tasks, run_sequence):
    """With lambda an update is smaller, entry by entry, than without, at the first stage too; the log shows the term."""
    sizes = {}
    for weight in (0.0, 0.1):
        result = run_sequence(tiny, PARAMS | {"sparsity": weight}, toy_tasks[:1])[0]
        branch = result.part.branch
        sizes[weight] = sum(delta_l1(branch.a[path], branch.b[path]).item() for path in branch.a)
        terms = result.log[-1]["terms"]
        assert (terms == {}) == (weight == 0)
        if weight:
            assert terms["sparsity"]["weighted"] == pytest.approx(weight * terms["sparsity"]["raw"])
    assert sizes[0.1] < 0.8 * sizes[0.0]


def test_without_weight_it_is_inc_lora(tiny, toy_tasks, run_sequence):
    """lambda = 0 trains bit for bit IncLoRA's branches, over three tasks."""
    ours = run_sequence(tiny, PARAMS | {"sparsity": 0.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["inc_lora"].params, toy_tasks)
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))


def test_settings_are_the_releases_for_t5_and_estimates_elsewhere():
    """Ten epochs on the standard orders; lambda by order."""
    standard, long = (NLora.settings("t5", order) for order in ("std-1", "long-6"))
    assert (standard["method"]["penalty"], standard["method"]["sparsity"]) == ("ab_l1", 0.4)
    assert (standard["train"]["epochs"], long["train"]["epochs"], long["method"]["sparsity"]) == (10, 1, 1.8)
    assert "penalty" not in NLora.settings("llama", "std-1")["method"]


def _adapted(tiny, path: str) -> bool:
    return path.rsplit(".", 1)[-1] in tiny.backbone.targets
