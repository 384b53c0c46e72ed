"""Gradients that harm no earlier task: the nearest one that has no negative product with any of theirs (GEM)."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor


def multipliers(gradient: Tensor, earlier: Tensor) -> Tensor:
    """v (k,) >= 0 for which gradient + earlier^T v is the vector nearest to `gradient` that has no negative product with any
    row of `earlier`; all 0 where `gradient` has none.

    `gradient` is (P,), `earlier` (k, P); rows of zeros ask for nothing. v >= 0 minimises || earlier^T v + gradient ||,
    the dual of GEM's quadratic programme (arXiv 1706.08840), with as many variables as there are rows. All vectors are met
    in the at most k + 1 dimensions that they span, at length 1, so that their sizes cost no precision. With one row it is
    max(0, -<g, e> / <e, e>), A-GEM's closed form. Returned where `gradient` is, in its precision; waits for the numbers.
    """
    vectors = torch.cat([earlier, gradient[None]])
    lengths = vectors.norm(dim=1)
    units = vectors / lengths.clamp(min=torch.finfo(vectors.dtype).tiny)[:, None]
    products = (units @ units.T).double().cpu()
    values, directions = torch.linalg.eigh((products + products.T) / 2)
    placed = directions * values.clamp(min=0).sqrt()
    found, _ = nnls(placed[:-1].T.numpy(), -placed[-1].numpy())
    scaled = torch.from_numpy(found).to(gradient) * lengths[-1]
    return torch.where(lengths[:-1] > 0, scaled / lengths[:-1], torch.zeros_like(scaled))
