"""Second moments and subspaces against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.adapters.moments import Mean, SecondMoment, add_rows, mean_name
from raycl.adapters.subspace import complement, grow, joined, leading, leading_outside, orthonormalise, residual

EMPTY = torch.zeros(8, 0, dtype=torch.float64)


def features(count: int, width: int = 8, rank: int = 8, seed: int = 0) -> torch.Tensor:
    """`count` rows of rank `rank` with unequal directions, fp64."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank, width, generator=draw, dtype=torch.float64) * 2.0 ** -torch.arange(rank)[:, None]
    return torch.randn(count, rank, generator=draw, dtype=torch.float64) @ mix


def moment(x: torch.Tensor) -> torch.Tensor:
    """C = X^T X / n."""
    return x.T @ x / len(x)


def captured(x: torch.Tensor, basis: torch.Tensor, power: int) -> float:
    """Share of the energy that span(basis) holds, from the singular values of X itself: 1 - E(X - X M M^T) / E(X)."""
    energy = [(torch.linalg.svdvals(rows) ** (2 * power)).sum() for rows in (x - x @ basis @ basis.T, x)]
    return float(1 - energy[0] / energy[1])


@settings(max_examples=60, deadline=None)
@given(st.floats(0.3, 1.0), st.sampled_from([1, 2]), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**20))
def test_growth_reaches_the_threshold_and_no_more(threshold, power, rank, second, seed):
    """Over two tasks: M stays orthonormal, holds the wanted energy of each task by an SVD of the features, needs its last
    column, keeps its old columns, and adding the same moment again adds nothing."""
    basis = EMPTY
    for task, width in enumerate((rank, second)):
        x = features(30, rank=width, seed=seed + task)
        old = basis
        columns = grow(old, moment(x), threshold, power)
        basis = torch.cat([old, columns], dim=1)
        assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() <= 1e-10
        assert captured(x, basis, power) >= threshold - 1e-9
        if columns.shape[1] and threshold < 0.999:
            assert captured(x, basis[:, :-1], power) < threshold
        assert grow(basis, moment(x), threshold, power).shape[1] == 0


def test_all_of_the_energy_takes_exactly_the_features_span():
    """With threshold 1 features of rank 3 add 3 columns, a second task only its new directions, a third known one none."""
    first, second = features(30, rank=3, seed=1), features(30, rank=2, seed=2)
    columns = grow(EMPTY, moment(first), 1.0)
    assert columns.shape == (8, 3)
    assert (first - first @ columns @ columns.T).abs().max() <= 1e-10
    more = grow(columns, moment(torch.cat([second, first])), 1.0)
    assert more.shape == (8, 2)
    both = torch.cat([columns, more], dim=1)
    assert grow(both, moment(first), 1.0).shape == (8, 0)


def test_energy_power_by_hand():
    """Eigenvalues 6, 3, 1: 0.6 + 0.3 reach 0.85 with power 1, 36/46 + 9/46 with power 2; at 0.75 power 2 needs one only."""
    c = torch.diag(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64))
    none = torch.zeros(3, 0, dtype=torch.float64)
    sizes = {(e, q): grow(none, c, e, q).shape[1] for e in (0.59, 0.75, 0.85, 0.95, 0.99) for q in (1, 2)}
    assert sizes == {
        (0.59, 1): 1, (0.59, 2): 1, (0.75, 1): 2, (0.75, 2): 1, (0.85, 1): 2, (0.85, 2): 2,
        (0.95, 1): 3, (0.95, 2): 2, (0.99, 1): 3, (0.99, 2): 3,
    }  # fmt: skip
    assert torch.equal(grow(none, c, 0.5).abs(), torch.eye(3, dtype=torch.float64)[:, :1])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_energy_is_counted_in_shares(scale):
    """Features of another scale need the same columns, and round-off adds none of its own."""
    c = moment(features(30, rank=3, seed=1))
    for threshold, power in ((0.7, 1), (0.95, 2), (1.0, 1)):
        columns = grow(EMPTY, c * scale, threshold, power)
        assert columns.shape == grow(EMPTY, c, threshold, power).shape and 0 < columns.shape[1] <= 3


def test_what_is_known_counts_towards_the_threshold():
    """With e1 known, eigenvalues (6, 3, 1) need only e2 for 0.85, nothing for 0.55."""
    c = torch.diag(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64))
    known = torch.eye(3, dtype=torch.float64)[:, :1]
    assert torch.allclose(grow(known, c, 0.85).abs(), torch.eye(3, dtype=torch.float64)[:, 1:2])
    assert grow(known, c, 0.55).shape == (3, 0)


def test_a_moment_of_zero_adds_nothing():
    """No energy, no columns."""
    assert grow(EMPTY, torch.zeros(8, 8, dtype=torch.float64), 1.0).shape == (8, 0)


def test_a_full_basis_cannot_grow():
    """Once M fills the space, no moment adds a column."""
    assert grow(torch.eye(8, dtype=torch.float64), moment(features(30)), 1.0).shape == (8, 0)


def test_chunks_give_block_vectors():
    """With two chunks each new column lies in one block of the coordinates, and each block reaches the threshold."""
    x = features(40, seed=5)
    columns = grow(EMPTY, moment(x), 0.9, chunks=2)
    first = columns[:4].abs().amax(dim=0) > 1e-12
    second = columns[4:].abs().amax(dim=0) > 1e-12
    assert torch.equal(first, ~second) and first.any() and second.any()
    for part in (slice(0, 4), slice(4, 8)):
        block = orthonormalise(columns[part, columns[part].abs().amax(dim=0) > 1e-12], torch.zeros(4, 0).double())
        assert captured(x[:, part], block, 1) >= 0.9
    values, vectors = leading(moment(x), 2)
    assert values.shape == (2, 4) and vectors.shape == (2, 8, 4)
    assert not vectors[0, 4:].any() and not vectors[1, :4].any()
    assert torch.allclose(values[1], torch.linalg.svdvals(x[:, 4:]) ** 2 / len(x))


def test_leading_vectors_are_those_of_the_svd():
    """Eigenvalues are the squared singular values / n, vectors the right singular vectors with the largest entry > 0."""
    x = features(30)
    values, vectors = leading(moment(x))
    _, singular, rows = torch.linalg.svd(x)
    assert torch.allclose(values[0], singular**2 / 30)
    assert torch.allclose((vectors[0] * rows.T).sum(dim=0).abs(), torch.ones(8, dtype=torch.float64))
    top = vectors[0].abs().argmax(dim=0)
    assert (vectors[0][top, torch.arange(8)] > 0).all()


def test_leading_directions_outside_are_those_of_the_residual():
    """Outside span(M) the vectors are the residual's, in the same order; the last k columns are 0."""
    basis = grow(EMPTY, moment(features(30, rank=3, seed=9)), 1.0)
    c = moment(features(30))
    _, plain = leading(residual(c, basis))
    ours = leading_outside(c, basis)
    assert torch.allclose((ours[0, :, :5] * plain[0, :, :5]).sum(dim=0).abs(), torch.ones(5, dtype=torch.float64))
    assert not ours[0, :, 5:].any()


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_nothing_new_still_gives_directions_outside(scale):
    """Features wholly inside span(M) leave only round-off: the vectors are orthonormal and orthogonal to M all the same."""
    basis = grow(EMPTY, moment(features(30, rank=3, seed=9)), 1.0)
    c = moment(features(30, rank=3, seed=9) * scale)
    vectors = leading_outside(c, basis)[0, :, :5]
    assert (vectors.T @ vectors - torch.eye(5)).abs().max() <= 1e-10
    assert (basis.T @ vectors).abs().max() <= 1e-12


def test_a_full_space_has_no_direction_outside():
    """Where M spans everything, or a whole block, all its vectors are 0."""
    c = moment(features(30))
    assert not leading_outside(c, torch.linalg.qr(features(8, seed=2)).Q).any()
    block = torch.eye(8, dtype=torch.float64)[:, :4]
    vectors = leading_outside(c, block, 2)
    assert not vectors[0].any() and (vectors[1, 4:].T @ vectors[1, 4:] - torch.eye(4)).abs().max() <= 1e-10


def test_residual_is_the_moment_of_the_projected_features():
    """(I - M M^T) C (I - M M^T) is the second moment of x - M M^T x."""
    x = features(30)
    basis = grow(EMPTY, moment(features(30, rank=3, seed=9)), 1.0)
    rest = x - x @ basis @ basis.T
    assert torch.allclose(residual(moment(x), basis), moment(rest), atol=1e-12)
    assert (residual(moment(x), basis) @ basis).abs().max() <= 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8), st.integers(0, 2**20))
def test_complement_completes_the_basis(known, seed):
    """[M, N] is orthogonal, (d, d)."""
    basis = torch.linalg.qr(features(8, seed=seed)).Q[:, :known]
    whole = torch.cat([basis, complement(basis)], dim=1)
    assert whole.shape == (8, 8) and (whole.T @ whole - torch.eye(8)).abs().max() <= 1e-10


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from([1, 2, 4]), st.integers(0, 2**20))
def test_second_moment_equals_numpy(batches, chunks, seed):
    """However the rows come in, C is the mean of x x^T, zero outside the chunks' blocks."""
    rows = np.random.default_rng(seed).standard_normal((sum(batches), 8)).astype(np.float32)
    running = SecondMoment(8, chunks)
    for part in np.split(rows, np.cumsum(batches)[:-1]):
        running.add(torch.from_numpy(part))
    exact = rows.astype(np.float64)
    expected = exact.T @ exact / len(rows) * np.kron(np.eye(chunks), np.ones((8 // chunks, 8 // chunks)))
    assert np.abs(running.value.numpy() - expected).max() <= 1e-12
    assert running.count.item() == len(rows)


def test_second_moments_of_workers_add_up():
    """Adding totals and counts of two moments gives the moment of all rows."""
    rows = features(20).float()
    left, right, whole = SecondMoment(8), SecondMoment(8), SecondMoment(8)
    left.add(rows[:13])
    right.add(rows[13:])
    whole.add(rows)
    left.total += right.total
    left.count += right.count
    assert torch.allclose(left.value, whole.value, atol=1e-14)


def test_rounding_adds_no_rank():
    """Few distinct fp32 rows, repeated: with all of the energy wanted, the basis has one column per distinct row."""
    distinct = torch.randn(5, 8) * 10.0 ** torch.arange(5)[:, None]
    running = SecondMoment(8)
    for _ in range(7):
        running.add(distinct[torch.randperm(5)])
    assert grow(EMPTY, running.value, 1.0).shape[1] == 5


def test_bad_use_of_a_moment_is_refused():
    """A chunk count that does not divide the width, and a moment without rows, say so."""
    with pytest.raises(ValueError, match="does not divide"):
        SecondMoment(8, 3)
    with pytest.raises(ValueError, match="no rows"):
        _ = SecondMoment(8).value


def test_rows_fill_a_moment_and_the_mean_beside_it():
    """Two batches under one name: C and the mean of all rows; without `mean` there is none."""
    rows = features(20)
    moments = {}
    for part in (rows[:13], rows[13:]):
        add_rows(moments, "both", part, chunks=2, mean=True)
        add_rows(moments, "alone", part)
    assert moments.keys() == {"both", "alone", mean_name("both")}
    assert (moments["both"].chunks, moments["alone"].chunks) == (2, 1)
    assert torch.allclose(moments["alone"].value, moment(rows), atol=1e-12)
    assert isinstance(moments[mean_name("both")], Mean)
    assert torch.allclose(moments[mean_name("both")].value, rows.mean(dim=0), atol=1e-12)


def test_blocks_are_joined_by_hand():
    """Mean (1, 2, -3, 0): the first block's (0, 1) stays, the second's (1, 0) turns, its (0, 1) is orthogonal and stays."""
    blocks = torch.zeros(2, 4, 2, dtype=torch.float64)
    blocks[0, 1, 0] = blocks[0, 0, 1] = blocks[1, 2, 0] = blocks[1, 3, 1] = 1.0
    mean = torch.tensor([1.0, 2.0, -3.0, 0.0])
    assert joined(blocks, mean).tolist() == [[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    assert joined(blocks, -mean).tolist() == [[0.0, -1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([1, 2, 4]))
def test_joined_blocks_do_not_cancel_on_the_mean(seed, chunks):
    """For features around a mean, what the joined first vector gives on the mean is the sum of the blocks' absolute parts,
    by an SVD of each block's own features: no choice of signs gives more."""
    draw = torch.Generator().manual_seed(seed)
    x = features(30, seed=seed) + torch.randn(8, generator=draw, dtype=torch.float64)
    running = SecondMoment(8, chunks)
    running.add(x)
    vector = joined(leading_outside(running.value, EMPTY, chunks)[:, :, :1], x.mean(dim=0))[:, 0]
    assert vector.norm() == pytest.approx(chunks**0.5)
    firsts = [np.linalg.svd(block.numpy())[2][0] for block in x.chunk(chunks, dim=1)]
    means = [block.mean(dim=0).numpy() for block in x.chunk(chunks, dim=1)]
    best = sum(abs(first @ mean) for first, mean in zip(firsts, means, strict=True))
    assert float(vector @ x.mean(dim=0)) == pytest.approx(best, abs=2e-3 * chunks * float(x.mean(dim=0).norm()))
