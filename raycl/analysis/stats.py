"""What a few scores per method allow to say: spread, bootstrap intervals, paired tests, and when to claim nothing.

The unit is one (order, seed) pair: every method is run on the same pairs, so methods are compared pair by pair.

The test is the exact sign-flip permutation test of the mean difference: if two methods were alike, each pair's
difference could as well have the other sign, and p is the share of all 2^n sign patterns whose mean lies at least as far
from 0. It assumes no normal distribution, which nobody can check on five to ten pairs, and unlike Wilcoxon's test it
uses the sizes of the differences and has no trouble with ties. Its smallest p is 2 / 2^n, so it never claims anything
from fewer than six pairs. Several tests at once are corrected by Holm's method.

A difference is claimed where the corrected p is small and the interval of the paired difference excludes 0. What orders and
seeds add to both methods of a pair cancels in the difference. The intervals of the two means hold that shared spread, so
whether they overlap says nothing about the difference.

Intervals: bias-corrected and accelerated bootstrap, Efron (1987), "Better Bootstrap Confidence Intervals".
Correction: Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from scipy.stats import bootstrap, permutation_test

Pair = TypeVar("Pair")
"""What two methods are compared on: an order and a seed."""
CONFIDENCE = 0.95
LEVEL = 0.05
"""Corrected p below which a difference counts."""
FEWEST = 5
"""Values below which there is no interval and no test: a bootstrap of so few covers far less than it says."""
RESAMPLES = 10_000
PATTERNS = 2**16
"""Sign patterns up to which the test is exact (16 pairs); beyond, so many are drawn."""
SEED = 20_260_101
"""Seed of the draws, so that the same scores always give the same figures."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (n - 1) and the mean's interval of n values; NaN where n is too small for one."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of the values that are defined (NaN = undefined, left out)."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Spread(0, math.nan, math.nan, math.nan, math.nan)
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    return Spread(len(known), float(np.mean(known)), sd, *interval(known))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean's bootstrap interval (BCa); NaN for fewer than `FEWEST` values, one point if all values are equal."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference of 0, exact up to 16 pairs."""
    values = np.asarray(differences, dtype=float)
    if not np.any(values):
        return 1.0
    test = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PATTERNS,
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the given order: the i-th smallest times (m - i + 1), never falling, at most 1."""
    corrected = [math.nan] * len(values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = highest
    return corrected


def fewest_pairs(tests: int) -> int:
    """The number of pairs from which the smallest possible p of one of `tests` tests, corrected, is below `LEVEL`."""
    return math.floor(math.log2(2 * tests / LEVEL)) + 1


@dataclass(frozen=True)
class PairTest:
    """Two methods on the pairs that both have; `first` has the higher mean there."""

    first: str
    second: str
    n: int
    difference: float
    """Mean of first minus second."""
    low: float
    """The difference's interval."""
    high: float
    p: float
    """NaN = not tested."""
    corrected: float
    """p after Holm's correction for all tests made."""
    claimed: bool
    """Whether `first` may be said to be better."""
    reason: str
    """Why, or why not."""


def compare(scores: Mapping[str, Mapping[Pair, float]]) -> list[PairTest]:
    """Test every two methods on their common pairs. `scores` is method -> (order, seed) -> score, higher = better.

    Two methods with fewer than `FEWEST` common pairs are not tested; the pairs they need are told for all comparisons.
    """
    common = [_common(scores, one, other) for one, other in combinations(scores, 2)]
    tested = [pair for pair in common if len(pair.values) >= FEWEST]
    plain = [sign_flip_p(pair.differences) for pair in tested]
    found = {pair: (p, corrected) for pair, p, corrected in zip(tested, plain, holm(plain), strict=True)}
    untested = (math.nan, math.nan)
    return [_judge(pair, *found.get(pair, untested), len(tested if pair in found else common)) for pair in common]


@dataclass(frozen=True)
class _Common:
    """The scores of two methods on their common pairs, the higher mean first."""

    first: str
    second: str
    values: tuple[tuple[float, float], ...]

    @property
    def differences(self) -> list[float]:
        return [a - b for a, b in self.values]


def _common(scores: Mapping[str, Mapping[Pair, float]], one: str, other: str) -> _Common:
    keys = [key for key in scores[one] if key in scores[other]]
    known = [(scores[one][key], scores[other][key]) for key in keys]
    values = [(a, b) for a, b in known if math.isfinite(a) and math.isfinite(b)]
    if sum(a - b for a, b in values) < 0:
        one, other, values = other, one, [(b, a) for a, b in values]
    return _Common(one, other, tuple(values))


def _judge(pair: _Common, p: float, corrected: float, tests: int) -> PairTest:
    """Claim a difference only if there are pairs enough, p is small after correction, and the difference excludes 0."""
    n, needed = len(pair.values), fewest_pairs(tests)
    low, high = interval(pair.differences)
    counted = f"{tests} test{'s' * (tests > 1)}"
    reason = f"p = {corrected:.3g} after Holm's correction for {counted}"
    claimed = False
    if n < needed:
        reason = f"n too small: {n} common (order, seed) pairs; {counted} can claim something from {needed} pairs on"
    elif corrected < LEVEL and low <= 0:
        reason = f"the interval of the paired difference, {low:.2f} to {high:.2f}, holds 0"
    elif corrected < LEVEL:
        reason += f", paired difference {low:.2f} to {high:.2f}"
        claimed = True
    mean = float(np.mean(pair.differences)) if n else math.nan
    return PairTest(pair.first, pair.second, n, mean, low, high, p, corrected, claimed, reason)
