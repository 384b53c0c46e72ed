"""Seconds of an amount of work, against sums worked out by hand."""

from __future__ import annotations

import pytest

from raycl.analysis.cost import Rates, Work, exchange, shared_out, total


def test_seconds() -> None:
    """Arithmetic or reading, whichever takes longer, for what is written; both for nothing else."""
    rates = Rates(products=5.0, forward=10.0, moved=5.0, layer=0.25, source="")
    assert rates.seconds(Work(products=20.0, layers=4)) == 3.0
    assert rates.seconds(Work(products=20.0, layers=4), back=True) == 5.0
    assert rates.seconds(Work(written=20.0, moved=5.0)) == 2.0
    assert rates.seconds(Work(written=20.0, moved=50.0)) == 10.0
    assert total([Work(1, 2, 3, 4), Work(10, 20, 30, 40)]) * 2 == Work(22, 44, 66, 88)
    assert Work(1, 2, 3, 4).multiply_adds == 4


def test_a_batch_splits_over_as_many_gpus_as_it_can() -> None:
    """Evenly; more GPUs never make fewer processes."""
    assert [shared_out(32, gpus) for gpus in (1, 3, 8, 31, 64, 512)] == [1, 2, 8, 16, 32, 32]
    assert [shared_out(12, gpus) for gpus in range(1, 13)] == [1, 2, 3, 4, 4, 6, 6, 6, 6, 6, 6, 12]
    for batch in (8, 12, 30, 64):
        counts = [shared_out(batch, gpus) for gpus in range(1, 100)]
        assert counts == sorted(counts) and all(batch % count == 0 for count in counts)


def test_gradients_go_around_a_ring() -> None:
    """2 (W - 1) / W of 4 bytes each over 12.5 GB/s; alone there is nothing to exchange."""
    assert exchange(10**9, 1) == 0
    assert exchange(10**9, 4) == pytest.approx(2 * 0.75 * 4 / 12.5)
    assert exchange(10**9, 8) > exchange(10**9, 4)
