"""Quantiles from counts; second moments and means are tested with the subspaces that are grown from them."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.moments import Quantiles


def test_quantiles_are_within_a_bin_of_the_numbers_own():
    """1 % wide bins: each quantile is at most 1 % above the number that it stands for, and never below it."""
    numbers = torch.rand(500, dtype=torch.float64).exp() * 40
    running = Quantiles()
    running.add(numbers)
    ordered = numbers.sort().values
    for share, place in ((0.0, 0), (0.002, 0), (0.5, 249), (0.99, 494), (1.0, 499)):
        found = running.at(torch.tensor([share])).item()
        assert ordered[place] <= found <= 1.01 * ordered[place]


def test_counts_of_two_workers_add_up():
    """The sums of two halves are the whole's, exactly."""
    numbers = torch.rand(40)
    left, right, whole = Quantiles(), Quantiles(), Quantiles()
    left.add(numbers[:7])
    right.add(numbers[7:])
    whole.add(numbers)
    assert torch.equal(left.total + right.total, whole.total) and left.count + right.count == whole.count


def test_numbers_outside_of_the_range_are_counted_in_the_nearest_bin():
    """0 and huge numbers have a quantile too; without numbers there is none."""
    running = Quantiles()
    running.add(torch.tensor([0.0, 1e12]))
    assert running.at(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1.01e-3, 1e7], rel=0.01)
    with pytest.raises(ValueError, match="no numbers were added"):
        Quantiles().at(torch.tensor([0.5]))
