"""What the gradients of single examples span: gathered by data-parallel workers, as orthonormal directions (OGD)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Inputs

NEGLIGIBLE = 1e-3
"""Directions along which unit gradients vary by less than this share of what they do along the largest are left out."""


class Sketch:
    """Sums Y = sum_i u_i w_i^T, (P, k), of unit vectors u_i (P,) with random w_i (k,): up to k of them span what Y spans.

    `total` (fp32) and `count` are what data-parallel workers add up. A sum needs no place for each vector, so that no worker
    has to know how many the others saw; it is the same for any number of workers, where w_i depends on what i is alone.
    """

    def __init__(self, size: int, columns: int, device: torch.device) -> None:
        """Nothing seen yet, of vectors of length `size`."""
        self.total = torch.zeros(size, columns, dtype=torch.float32, device=device)
        self.count = torch.zeros((), dtype=torch.float32, device=device)

    def add(self, vector: Tensor, generator: torch.Generator) -> None:
        """Count a vector (P,), whatever its length but 0, with a w drawn from `generator` (normal, independent)."""
        weights = torch.randn(self.total.shape[1], generator=generator).to(self.total)
        unit = vector.float() / vector.norm().clamp(min=torch.finfo(torch.float32).tiny)
        self.total.addr_(unit, weights)
        self.count += 1


def orthonormal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns (P, j) that span what the columns of `vectors` (P, k) add to those of `basis` (P, b), j <= k.

    `basis` has orthonormal columns and stays as it is. In fp64; returned in the precision of `vectors`, largest first. What
    is `NEGLIGIBLE` is left out: of a rounding no direction may come.
    """
    wide, old = vectors.double(), basis.double()
    largest = torch.linalg.matrix_norm(wide, 2)
    outside = wide - old @ (old.T @ wide)
    columns, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
    columns = columns[:, sizes > NEGLIGIBLE * largest]
    columns = columns - old @ (old.T @ columns)
    return (columns / columns.norm(dim=0)).to(vectors.dtype).contiguous()


def content(inputs: Inputs) -> str:
    """A name of one example by its tokens alone, whatever its padding and its place; `inputs` holds that example only."""
    labels = None if inputs.labels is None else inputs.labels[inputs.labels != IGNORE].tolist()
    tokens = f"{inputs.ids[inputs.mask.bool()].tolist()} {labels}"
    return hashlib.sha256(tokens.encode()).hexdigest()
