"""A routing rule says what its router says, in tensors that need none of it."""

from __future__ import annotations

import torch

from raycl.adapters.gaussian_router import GaussianRouter
from raycl.adapters.routes import rule_tensors
from tests.adapters.test_gaussian_router import WIDTH, draw, sums


def squares(whiten: torch.Tensor, means: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """|W h - m_t|^2 (B, T) of features (B, D)."""
    return ((features @ whiten.T)[:, None] - means[None]).square().sum(dim=-1)


def test_distances_of_a_rule_are_those_of_its_router() -> None:
    """Of all tasks together, and of each alone where unknown inputs are looked for."""
    tasks = [sums(one) for one in draw((20, 30, 25))]
    router, apart = GaussianRouter(tasks), [GaussianRouter([one]) for one in tasks]
    limits = torch.tensor([1.0, 2.0, 3.0])
    tensors = rule_tensors(router, apart, limits)
    names = {f"{kind}{suffix}" for kind in ("whiten", "means") for suffix in ("", ".0", ".1", ".2")}
    assert set(tensors) == names | {"limits"}
    assert {one.dtype for one in tensors.values()} == {torch.float64}
    assert tensors["limits"].tolist() == limits.tolist()
    fresh = torch.tensor(draw((7,), WIDTH, seed=3)[0])
    for suffix, one in (("", router), *((f".{n}", alone) for n, alone in enumerate(apart))):
        found = squares(tensors[f"whiten{suffix}"], tensors[f"means{suffix}"], fresh)
        assert torch.allclose(found, one.distances(fresh))
    assert "limits" not in rule_tensors(router, [], None)
