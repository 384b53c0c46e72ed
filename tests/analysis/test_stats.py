"""Statistics of few scores: against values computed by hand or by another way, and when nothing may be claimed."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from raycl.analysis.stats import FEWEST, RESAMPLES, SEED, compare, fewest_pairs, holm, interval, sign_flip_p, spread


def test_a_spread_is_mean_deviation_and_interval() -> None:
    """By hand: mean 3, variance (4 + 1 + 0 + 1 + 4) / 4; an undefined value is left out."""
    found = spread([1.0, 2.0, math.nan, 3.0, 4.0, 5.0])
    assert (found.n, found.mean, found.sd) == (5, 3.0, pytest.approx(math.sqrt(2.5)))
    assert 1 < found.low < 3 < found.high < 5


def test_too_few_values_have_no_interval() -> None:
    """One value has no deviation, four have no interval, none has nothing."""
    assert math.isnan(spread([2.0]).sd)
    assert math.isnan(spread([1.0, 2.0, 3.0, 9.0]).low)
    assert spread([]).n == 0
    assert math.isnan(spread([math.nan]).mean)


def test_equal_values_have_a_point_as_interval() -> None:
    """No spread, no division by zero."""
    assert interval([7.0] * 6) == (7.0, 7.0)


def test_the_interval_is_efrons() -> None:
    """BCa once more from its formulas, with the same draws."""
    values = np.array([40.1, 44.0, 47.5, 52.3, 41.2, 58.9, 43.3])
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    means = np.sort(values[draws].mean(axis=1))
    mean = values.mean()
    bias = norm.ppf(((means < mean).sum() + (means <= mean).sum()) / (2 * RESAMPLES))
    left_out = np.array([np.delete(values, i).mean() for i in range(len(values))])
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shares = [norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in norm.ppf([0.025, 0.975])]
    assert interval(list(values)) == pytest.approx(np.quantile(means, shares), abs=0.15)
    assert interval(list(values)) == interval(list(values))


def test_the_paired_test_counts_sign_patterns() -> None:
    """Against plain enumeration; all six of one sign is the extreme of 64 patterns, in both directions."""
    assert sign_flip_p([1.0, 2.0, 0.5, 3.0, 1.5, 0.1]) == pytest.approx(2 / 64)
    differences = [3.0, -1.0, 2.0, 0.5, -0.25, 4.0, 1.0]
    patterns = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=7)
    ]
    expected = sum(value >= abs(sum(differences)) - 1e-12 for value in patterns) / 128
    assert sign_flip_p(differences) == pytest.approx(expected)
    assert sign_flip_p([-d for d in differences]) == pytest.approx(expected)
    assert sign_flip_p([0.0] * 6) == 1.0


def test_holms_correction() -> None:
    """Holm's step-down by hand: 4 x .01, 3 x .02, then never smaller than the one before, and at most 1."""
    assert holm([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert holm([0.5, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_how_many_pairs_a_claim_needs() -> None:
    """The least n with tests * 2 / 2^n < 0.05."""
    for tests in (1, 3, 6, 15):
        n = fewest_pairs(tests)
        assert tests * 2 / 2**n < 0.05 <= tests * 2 / 2 ** (n - 1)
    assert fewest_pairs(1) == 6


def test_a_clear_difference_is_claimed() -> None:
    """Eight pairs, always better; the better one stands first, whatever the order of the input."""
    low = {("o", s): 40.0 + s / 10 for s in range(8)}
    high = {("o", s): 60.0 + s / 7 for s in range(8)}
    (test,) = compare({"low": low, "high": high})
    assert (test.first, test.second, test.n, test.claimed) == ("high", "low", 8, True)
    assert test.difference == pytest.approx(np.mean([20 + s / 7 - s / 10 for s in range(8)]))
    assert test.low < test.difference < test.high
    assert test.p == test.corrected == pytest.approx(2 / 256)


def test_nothing_is_claimed_of_few_pairs() -> None:
    """Four pairs are not tested; five are, but cannot be enough. The words name the number that would be."""
    for n in (4, 5):
        a, b = dict.fromkeys(range(n), 1.0), {i: 50.0 + i for i in range(n)}
        (test,) = compare({"a": a, "b": b})
        assert not test.claimed
        assert test.reason == f"n too small: {n} common (order, seed) pairs; 1 test can claim something from 6 pairs on"
        assert math.isnan(test.p) == (n < FEWEST)
        three = compare({"a": a, "b": b, "c": a})
        assert all("3 tests can claim something from 7 pairs on" in test.reason for test in three)


def test_only_common_pairs_count() -> None:
    """A method that lacks a pair (a failed sequence, an undefined score) is compared on the others."""
    a = {i: 10.0 + i for i in range(9)}
    b = {i: 30.0 + i for i in range(3, 9)} | {20: 99.0, 3: math.nan}
    (test,) = compare({"a": a, "b": b})
    assert (test.first, test.n, test.difference) == ("b", 5, 20.0)


def test_what_both_methods_share_hides_no_difference() -> None:
    """Orders 30 points apart, one method better by 1 to 3 on each: claimed, though the means' own intervals overlap.

    By hand: the differences sum to 16, so their mean is 2; only the pattern as it is and its mirror image reach that.
    """
    base = {i: 10.0 + 30.0 * i for i in range(8)}
    better = {i: value + more for (i, value), more in zip(base.items(), (1, 3, 2, 2, 1, 3, 2, 2), strict=True)}
    assert interval(list(better.values()))[0] < interval(list(base.values()))[1]
    (test,) = compare({"a": base, "b": better})
    assert (test.first, test.difference, test.p, test.claimed) == ("b", 2.0, 2 / 256, True)
    assert 1 < test.low < 2 < test.high < 3
    assert test.reason == (
        f"p = 0.00781 after Holm's correction for 1 test, paired difference {test.low:.2f} to {test.high:.2f}"
    )


def test_a_difference_whose_interval_holds_0_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ups and downs that sum to 2 over 8 pairs; and an interval that alone stands against a small p."""
    base = {i: 10.0 + 30.0 * i for i in range(8)}
    mixed = {i: value + more for (i, value), more in zip(base.items(), (3, -2, 2, -3, 4, -1, 1, -2), strict=True)}
    (test,) = compare({"a": base, "b": mixed})
    assert (test.first, test.difference) == ("b", 0.25)
    assert test.low < 0 < test.high
    assert not test.claimed
    # The test is the stricter of the two on all scores that were tried, so the interval is put in by hand.
    monkeypatch.setattr("raycl.analysis.stats.interval", lambda values: (-0.5, 2.5))
    (test,) = compare({"a": base, "b": {i: value + 1 for i, value in base.items()}})
    assert test.corrected < 0.05
    assert not test.claimed
    assert test.reason == "the interval of the paired difference, -0.50 to 2.50, holds 0"


def test_chance_is_named_with_its_p() -> None:
    """Ups and downs: p after correction is the reason."""
    a = {i: 50.0 + (-1) ** i * (1 + i / 10) for i in range(8)}
    b = dict.fromkeys(range(8), 50.0)
    tests = compare({"a": a, "b": b, "c": b})
    assert not any(test.claimed for test in tests)
    assert all("after Holm's correction for 3 tests" in test.reason for test in tests)
