"""Gates: range, the zero, pooling, and how they are put together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raycl.adapters.constrained import constrained
from raycl.adapters.gates import COSINE_SCALE, Gate, frozen_gate, pool, score, squash, unit_rms
from raycl.methods.gain_lora import GainLoraParams

ZERO_AT_ZERO = ("abs_tanh", "clipped_abs", "abs_sin")
D, H = 10, 6


def random_gate(how: str = "cosine", f: str = "abs_tanh", seed: int = 0) -> Gate:
    """A gate d -> h -> d with weights large enough to leave the linear range."""
    draw = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=draw) for shape in ((H, D), (D, H), (1, D))]
    return frozen_gate(weights, how, f)


@pytest.mark.parametrize("how", ["cosine", "dot"])
@pytest.mark.parametrize("f", [*ZERO_AT_ZERO, "sigmoid"])
def test_gates_lie_between_0_and_1(how, f):
    """a is in [0, 1] for every score and squashing function; one value per example."""
    a = random_gate(how, f)(torch.randn(50, D) * 3)
    assert a.shape == (50,) and a.min() >= 0 and a.max() <= 1


def test_default_gate_is_bounded_by_tanh_2():
    """With 4 cos and |2 sigmoid(b) - 1| the largest value is tanh(2) = 0.9640, reached along the key."""
    gate = random_gate()
    last = gate.features(torch.randn(1, D))[-1]
    gate.key.reset(last)
    along = squash(score(last, gate.key(), "cosine"), "abs_tanh")
    assert abs(along.item() - math.tanh(2)) < 1e-6
    assert random_gate()(torch.randn(500, D)).max() <= 0.9641


@pytest.mark.parametrize("f", ZERO_AT_ZERO)
def test_squash_of_0_is_0(f):
    """f(0) = 0: orthogonality to the key closes the gate; the function is even."""
    values = torch.linspace(-3, 3, 61)
    assert squash(torch.zeros(1), f).item() == 0
    assert torch.allclose(squash(values, f), squash(-values, f), atol=1e-6)


def test_squash_by_hand():
    """The four functions at b = 0.5 and their published forms."""
    b = torch.tensor([0.5])
    assert squash(b, "abs_tanh").item() == pytest.approx(math.tanh(0.25), abs=1e-6)
    assert squash(b, "clipped_abs").item() == 0.5
    assert squash(b, "abs_sin").item() == pytest.approx(math.sin(math.pi / 4), abs=1e-6)
    assert squash(b, "sigmoid").item() == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-6)
    assert squash(torch.zeros(1), "sigmoid").item() == 0.5


def test_score_by_hand():
    """4 cos, or the dot product; a zero key or feature gives 0, not NaN."""
    features, key = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    assert score(features, key, "dot").tolist() == [6.0, 0.0]
    assert score(features, key, "cosine").tolist() == pytest.approx([COSINE_SCALE * 0.6, 0.0])
    assert score(features, torch.zeros(1, 2), "cosine").tolist() == [0.0, 0.0]


def test_features_by_hand():
    """p_l = SiLU(G_l p_(l-1)) and a = |tanh(2 cos(p_2, k))|, written out."""
    gate = random_gate()
    w1, w2, k = gate.values()
    p0 = torch.randn(4, D)
    p1 = torch.nn.functional.silu(p0 @ w1.T)
    p2 = torch.nn.functional.silu(p1 @ w2.T)
    for ours, expected in zip(gate.features(p0), (p0, p1, p2), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(p2, k)
    assert torch.allclose(gate(p0), torch.tanh(2 * cosine).abs(), atol=1e-6)


def test_a_gate_ignores_autocast():
    """Under bf16 autocast, and from bf16 embeddings, the gate computes in fp32."""
    gate, p0 = random_gate(), torch.randn(3, D)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gate(p0)
    assert inside.dtype == torch.float32 and torch.equal(inside, gate(p0))
    rounded = torch.randn(2, 3, D).bfloat16()
    pooled = pool(rounded, torch.ones(2, 3), "mean_tokens")
    assert torch.allclose(pooled, rounded.float().mean(dim=1), atol=1e-6) and pooled.dtype == torch.float32


def test_a_batch_of_one_and_one_layer():
    """A single example keeps its batch dimension, and a gate without hidden layer works."""
    p0 = torch.randn(3, D)
    gate = random_gate()
    assert gate(p0[:1]).shape == (1,)
    assert torch.allclose(gate(p0[:1]), gate(p0)[:1], atol=1e-6)
    flat = frozen_gate([torch.randn(D, D), torch.randn(1, D)], "cosine", "abs_tanh")
    assert flat(p0).shape == (3,) and len(flat.features(p0)) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**31))
def test_padding_does_not_enter_the_mean_over_tokens(tokens, left, right, seed):
    """mean_tokens and max see only real tokens, wherever the padding stands; mean_padded shrinks with the length."""
    draw = torch.Generator().manual_seed(seed)
    real = torch.randn(1, tokens, D, generator=draw)
    noise = [torch.randn(1, n, D, generator=draw) for n in (left, right)]
    padded = torch.cat([noise[0], real, noise[1]], dim=1)
    mask = torch.tensor([[0] * left + [1] * tokens + [0] * right])
    whole = torch.ones(1, tokens, dtype=torch.long)
    for how in ("mean_tokens", "max"):
        assert torch.allclose(pool(padded, mask, how), pool(real, whole, how), atol=1e-6)
    share = tokens / (tokens + left + right)
    assert torch.allclose(pool(padded, mask, "mean_padded"), share * pool(real, whole, "mean_padded"), atol=1e-6)


def test_only_mean_tokens_gives_a_gate_that_ignores_padding():
    """SiLU is not homogeneous: the released pooling changes a when a batch is padded, ours does not."""
    gate = random_gate("cosine", "abs_tanh", 3)
    real = torch.randn(4, 3, D)
    padded = torch.cat([real, torch.randn(4, 6, D)], dim=1)
    mask, whole = torch.tensor([[1] * 3 + [0] * 6] * 4), torch.ones(4, 3)
    drift = {
        how: (gate(pool(padded, mask, how)) - gate(pool(real, whole, how))).abs().max().item()
        for how in ("mean_tokens", "mean_padded")
    }
    assert drift["mean_tokens"] <= 1e-6
    assert drift["mean_padded"] > 1e-2


def test_unit_rms_by_hand():
    """(3, 4) has RMS sqrt(12.5); every row has its own; its scale is gone, its direction not; zeros stay zeros."""
    rows = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    found = unit_rms(rows)
    assert found[0].tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert found[2].tolist() == [0.0, 0.0]
    scaled = unit_rms(torch.randn(5, D) * 1e-3)
    assert torch.allclose(scaled.square().mean(dim=1), torch.ones(5), atol=1e-5)


def test_values_are_the_effective_weights():
    """A gate rebuilt frozen from `values` after it moved gives the same a, bit for bit where its weights are fixed."""
    basis = torch.linalg.qr(torch.randn(D, 3)).Q
    narrow = torch.linalg.qr(torch.randn(H, 2)).Q
    layers = [constrained(torch.randn(H, D), basis), constrained(torch.randn(D, H), narrow)]
    gate = Gate(layers, constrained(torch.randn(1, D), basis), "cosine", "abs_tanh")
    for parameter in gate.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    p0 = torch.randn(5, D)
    rebuilt = frozen_gate(gate.values(), "cosine", "abs_tanh")
    assert torch.allclose(rebuilt(p0), gate(p0), atol=1e-5)
    again = frozen_gate(rebuilt.values(), "cosine", "abs_tanh")
    assert torch.equal(again(p0), rebuilt(p0))
    assert not any(p.requires_grad for p in rebuilt.parameters())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("gate_squash", ("abs_tanh", "clipped_abs", "abs_sin", "sigmoid")),
        ("gate_score", ("cosine", "dot")),
        ("gate_pooling", ("mean_tokens", "mean_padded", "max")),
        ("gate_input", ("auto", "raw", "rms")),
    ],
)
def test_the_forms_of_a_gate_can_be_chosen(field, values):
    """All that the code knows, by the names that users write, and no others."""
    for value in values:
        assert getattr(GainLoraParams.model_validate({field: value}), field) == value
    with pytest.raises(ValidationError):
        GainLoraParams.model_validate({field: "another"})
