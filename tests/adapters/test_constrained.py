"""A constrained linear map keeps its values on the subspace under a real optimizer, and moves outside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raycl.adapters.constrained import ConstrainedLinear, FixedLinear, constrained

D_IN, D_OUT, KNOWN = 12, 7, 5


def subspace(known: int = KNOWN) -> torch.Tensor:
    """An orthonormal basis (d_in, known), fp64."""
    draw = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(D_IN, known, generator=draw, dtype=torch.float64)).Q


def trained(layer: torch.nn.Module, dtype: torch.dtype, steps: int = 200) -> torch.nn.Module:
    """AdamW towards a random target on random inputs: large steps in all free directions."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(40, D_IN, generator=draw, dtype=torch.float64).to(dtype)
    y = torch.randn(40, D_OUT, generator=draw, dtype=torch.float64).to(dtype)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=2e-2, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(F.silu(layer(x)), y).backward()
        optimizer.step()
    return layer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_on_the_subspace_never_move(dtype, tolerance):
    """After 200 AdamW steps W x is W0 x for x in span(M), and elsewhere it has moved far."""
    basis = subspace()
    start = torch.randn(D_OUT, D_IN)
    layer = ConstrainedLinear(start, basis).to(dtype)
    # The complement is stored in fp32; in fp64 the basis to hold against is the complement of what is stored.
    exact = torch.linalg.qr(layer.free.double(), mode="complete").Q[:, D_IN - KNOWN :]
    inside = (torch.randn(9, KNOWN, dtype=torch.float64) @ exact.T).to(dtype)
    before = layer(inside).detach()
    trained(layer, dtype)
    assert (layer(inside) - before).abs().max() <= tolerance
    assert (layer().detach() @ exact.to(dtype) - start.to(dtype) @ exact.to(dtype)).abs().max() <= tolerance
    outside = torch.randn(9, D_IN).to(dtype)
    assert (layer(outside) - outside @ start.to(dtype).T).abs().max() > 0.5


def test_outputs_on_the_given_basis_do_not_move():
    """The same in fp32 with the basis the caller gave, as gates use it."""
    basis = subspace()
    start = torch.randn(D_OUT, D_IN)
    layer = trained(constrained(start, basis), torch.float32)
    inside = (torch.randn(9, KNOWN, dtype=torch.float64) @ basis.T).float()
    assert (layer(inside) - inside @ start.T).abs().max() <= 1e-5


def test_a_plain_linear_map_does_move():
    """Without the constraint the same training changes the outputs on the subspace: the test above can fail."""
    basis = subspace()
    start = torch.randn(D_OUT, D_IN)
    layer = trained(constrained(start, basis[:, :0]), torch.float32)
    inside = (torch.randn(9, KNOWN, dtype=torch.float64) @ basis.T).float()
    assert (layer(inside) - inside @ start.T).abs().max() > 0.1


def test_projecting_gradients_before_adam_is_not_enough():
    """Why the constraint is built in: Adam rescales each coordinate, so projected gradients leave the complement."""
    basis = subspace().float()
    weight = torch.nn.Parameter(torch.randn(D_OUT, D_IN))
    start = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=2e-2, weight_decay=0.0)
    x, y = torch.randn(40, D_IN), torch.randn(40, D_OUT)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(F.silu(x @ weight.T), y).backward()
        weight.grad -= (weight.grad @ basis) @ basis.T
        assert (weight.grad @ basis).abs().max() <= 1e-6
        optimizer.step()
    assert ((weight - start) @ basis).abs().max() > 1e-2


def test_forward_and_effective_weight_agree():
    """Called with x, the map applies the weight it returns when called bare; at the start that is W0."""
    start = torch.randn(D_OUT, D_IN)
    layer = constrained(start, subspace())
    assert torch.equal(layer(), start)
    trained(layer, torch.float32, 20)
    x = torch.randn(3, D_IN)
    assert torch.allclose(layer(x), x @ layer().T, atol=1e-5)


def test_reset_replaces_the_start():
    """Reset changes W0 for the constrained and the fixed map, nothing else."""
    for known in (KNOWN, D_IN):
        layer = constrained(torch.randn(D_OUT, D_IN), subspace(known))
        other = torch.randn(D_OUT, D_IN)
        layer.reset(other)
        assert torch.equal(layer(), other)


def test_a_full_subspace_leaves_a_fixed_map():
    """Where M spans everything nothing trains; with no M everything does."""
    fixed = constrained(torch.randn(D_OUT, D_IN), subspace(D_IN))
    assert isinstance(fixed, FixedLinear) and not any(p.requires_grad for p in fixed.parameters())
    x = torch.randn(2, D_IN)
    assert torch.allclose(fixed(x), x @ fixed().T)
    free = constrained(torch.randn(D_OUT, D_IN), subspace()[:, :0])
    assert free.move.shape == (D_OUT, D_IN)


def test_only_the_free_coordinates_train():
    """Trainable are d_out (d_in - m) numbers, in fp32; W0 and N are frozen."""
    layer = constrained(torch.randn(D_OUT, D_IN), subspace())
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["move"]
    assert layer.move.shape == (D_OUT, D_IN - KNOWN)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
