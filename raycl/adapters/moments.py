"""Sums gathered in a data pass: second moments C = (1/n) sum of x x^T over valid rows x, means, and quantiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class SecondMoment:
    """Running second moment of d-dimensional features, block-diagonal in `chunks` equal blocks of the coordinates.

    Sums are fp64, shape (chunks, d/chunks, d/chunks), and so are products (fp32 for 16-bit features, whose own rounding
    is far coarser): the round-off of fp32 products would make C full-rank,
    and a subspace grown from it towards all of the energy would fill up with noise. `total` and `count` are what
    data-parallel workers add up before anyone reads `value`.
    """

    def __init__(self, width: int, chunks: int = 1, device: torch.device | str = "cpu") -> None:
        if width % chunks:
            raise ValueError(f"chunks: {chunks} does not divide the feature width {width}")
        self.width, self.chunks = width, chunks
        block = width // chunks
        self.total = torch.zeros(chunks, block, block, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add rows, shape (n, d)."""
        exact = torch.float32 if features.dtype in (torch.bfloat16, torch.float16) else torch.float64
        rows = features.detach().to(exact).reshape(features.shape[0], self.chunks, -1).transpose(0, 1)
        self.total += (rows.transpose(1, 2) @ rows).double()
        self.count += features.shape[0]

    @property
    def value(self) -> Tensor:
        """C as one (d, d) fp64 matrix on its device, zero outside the blocks. Raises ValueError before a row was added."""
        if not self.count > 0:
            raise ValueError("second moment: no rows were added")
        return torch.block_diag(*(self.total / self.count))


class Mean:
    """Running mean of d-dimensional rows, in fp64; `total` and `count` are what data-parallel workers add up."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows, shape (n, d)."""
        self.total += rows.detach().double().sum(dim=0)
        self.count += rows.shape[0]

    @property
    def value(self) -> Tensor:
        """The mean (d,), fp64. Raises ValueError before a row was added."""
        if not self.count > 0:
            raise ValueError("mean: no rows were added")
        return self.total / self.count


class Quantiles:
    """Running quantiles of positive numbers, from counts in bins 1 % wide between 1e-3 and 1e7; others go to the nearest.

    Counts of data-parallel workers add up, which quantiles themselves do not.
    """

    LOWEST, STEP, BINS = 1e-3, 1.01, 2314

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(self.BINS, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add numbers, shape (n,)."""
        places = (values.detach().double().clamp(min=self.LOWEST) / self.LOWEST).log() / math.log(self.STEP)
        self.total += torch.bincount(places.long().clamp(max=self.BINS - 1), minlength=self.BINS)
        self.count += len(values)

    def at(self, shares: Tensor) -> Tensor:
        """For each share, from 0 to 1, the upper edge of the first bin up to which at least that share of the numbers lies
        (and at least one number), fp64. Raises ValueError before a number was added."""
        if not self.count > 0:
            raise ValueError("quantiles: no numbers were added")
        reached = self.total.cumsum(0)
        wanted = (shares.to(reached) * self.count).ceil().clamp(min=1)
        return self.LOWEST * self.STEP ** (torch.searchsorted(reached, wanted) + 1).double()


def add_rows(moments: dict[str, Any], name: str, rows: Tensor, chunks: int = 1, mean: bool = False) -> None:
    """Add rows (n, d) to the second moment called `name` among `moments`, and if `mean` to their mean, beside it."""
    width, device = rows.shape[1], rows.device
    if name not in moments:
        moments[name] = SecondMoment(width, chunks, device)
        if mean:
            moments[mean_name(name)] = Mean(width, device)
    moments[name].add(rows)
    if mean:
        moments[mean_name(name)].add(rows)


def mean_name(name: str) -> str:
    """What the mean is called that stands beside the second moment called `name`."""
    return f"{name}/mean"
