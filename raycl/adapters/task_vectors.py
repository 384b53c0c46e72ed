"""Task vectors: what fine-tuning added to a weight, and the rules that merge those of several tasks into one.

A vector is a tensor of any shape; the vectors of one weight have that weight's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """The plain mean."""
    return torch.stack(list(vectors)).mean(dim=0)


def largest(vectors: Sequence[Tensor]) -> Tensor:
    """MagMax: in each entry the value of largest magnitude; of equal ones the later."""
    merged = vectors[0]
    for vector in vectors[1:]:
        merged = torch.where(vector.abs() >= merged.abs(), vector, merged)
    return merged


def elect(vectors: Sequence[Tensor]) -> Tensor:
    """TIES after trimming: in each entry the mean of the nonzero values that have the sign of the sum; 0 if it is 0."""
    stacked = torch.stack(list(vectors))
    agree = (stacked.sign() == stacked.sum(dim=0).sign()) & (stacked != 0)
    return (stacked * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def trim(vector: Tensor, threshold: float) -> Tensor:
    """Entries below `threshold` in magnitude become 0."""
    return torch.where(vector.abs() >= threshold, vector, torch.zeros_like(vector))


def magnitude(tensors: Callable[[], Iterable[Tensor]], share: float) -> float:
    """The magnitude that the largest `share` of all entries (rounded down, at least one) reach; exact.

    `tensors()` walks through the fp32 tensors that make up one vector; it is called three times, and only one tensor at a
    time is held: nonnegative floats are ordered like their bits, so two histograms of 16 bits each find the value.
    """
    wanted = max(1, int(share * sum(tensor.numel() for tensor in tensors())))
    high, above = _bin(_total(torch.bincount(_bits(tensor) >> 16, minlength=1 << 16) for tensor in tensors()), wanted)
    low, _ = _bin(_total(_low_histogram(tensor, high) for tensor in tensors()), wanted - above)
    return torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32).item()


def refactor(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank) with B A the best approximation of `delta` (d_out, d_in) of that rank (SVD)."""
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    root = s[:rank].sqrt()
    missing = rank - len(root)
    a = F.pad(root[:, None] * v[:rank], (0, 0, 0, max(0, missing)))
    b = F.pad(u[:, :rank] * root, (0, max(0, missing)))
    return a.float(), b.float()


def _bits(tensor: Tensor) -> Tensor:
    """The bits of the entries' magnitudes as integers, (n,)."""
    return tensor.float().abs().contiguous().view(torch.int32).flatten()


def _total(histograms: Iterable[Tensor]) -> Tensor:
    """Their sum, without one to start from: they may be on any device."""
    return reduce(torch.add, histograms)


def _low_histogram(tensor: Tensor, high: int) -> Tensor:
    """How often each pattern of the lower 16 bits occurs among the entries whose upper bits are `high`."""
    bits = _bits(tensor)
    return torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)


def _bin(histogram: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest entry, and how many entries lie in the bins above it."""
    reached = histogram.flip(0).cumsum(0).flip(0)
    index = int((reached >= wanted).nonzero().max())
    return index, int(reached[index] - histogram[index])
