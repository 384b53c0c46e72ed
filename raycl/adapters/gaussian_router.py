"""A Gaussian classifier over tasks (linear discriminant analysis), in closed form from sums that each task keeps alone.

Task t keeps of its n_t features h in R^D:

    mu_t = mean h,   S_t = sum (h - mu_t)(h - mu_t)^T,   q_t = sum |h - mu_t|^4

Any set of tasks, in any order, then gives, with nu = sum (n_t - 1) and S = sum S_t,

    Sigma   = (1 - delta) S / nu + delta tr(S / nu) / D I
    d_t(h)  = (h - mu_t)^T Sigma^-1 (h - mu_t)
    p(t|h)  = softmax(-d_t(h) / (2 T)),  all tasks equally likely beforehand

    delta   = D / (nu + D)                                            (`formula`)
    delta   = min(b, e) / e,  N = sum n_t,  C = S / N,                (`ledoit_wolf`: Ledoit and Wolf 2004, of all h - mu_t)
              e = |C|^2 - tr(C)^2 / D,  b = (sum q_t / N - |C|^2) / N

The classifier is surer of the features it was made from than of others. What it would say of one of task t's n features,
x = h - mu_t, without having seen it follows from its own sums (Sherman and Morrison). With nu and tr(S) held fixed,
c = (1 - delta) / nu n / (n - 1), d = x^T Sigma^-1 x, D_tj = (mu_j - mu_t)^T Sigma^-1 (mu_j - mu_t) and
p = (mu_j - mu_t)^T Sigma^-1 x,

    d_t without x              = (n / (n - 1))^2 d / (1 - c d)
    (d_j - d_t) without x      = D_tj + (c p^2 - 2 p - d (2n - 1) / (n - 1)^2) / (1 - c d)

In a pair (t, j) this margin is about Gaussian over task t: E p = 0, E p^2 = w^T S_t w / n with w = Sigma^-1 (mu_j - mu_t),
and d near its mean tr(Sigma^-1 S_t) / n. The temperature T >= 1 minimises the sum over all ordered pairs of
E log(1 + exp(-margin / 2T)), which is convex in 1/T. Everything is fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Shrinkage = Literal["formula", "ledoit_wolf"]

HOTTEST = 1000.0
"""The largest temperature that is looked for."""
NEGLIGIBLE = 1e-6
"""The slope of the cross-entropy, in 1/T, up to which a lower T does no harm."""
NORMAL = torch.linspace(-6, 6, 97, dtype=torch.float64)
"""Points at which expectations over a standard normal variable are taken."""


@dataclass(frozen=True)
class TaskSums:
    """What a task keeps of its features; all on one device."""

    mean: Tensor
    """mu_t (D,), fp64."""
    count: int
    """n_t, at least 1."""
    triangle: Tensor
    """S_t's upper triangle, row by row (D (D + 1) / 2,)."""
    fourth: float = 0.0
    """q_t; only `ledoit_wolf` reads it."""

    @property
    def scatter(self) -> Tensor:
        """S_t (D, D), fp64."""
        return unpacked(self.triangle, len(self.mean))


def scatter_of(second: Tensor, mean: Tensor, count: int) -> Tensor:
    """S_t (D, D) from the second moment (D, D), the mean (D,) and the number of features, all fp64."""
    return count * (second - torch.outer(mean, mean))


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric (D, D), row by row."""
    return matrix[_upper(matrix.shape[0], matrix.device)]


def unpacked(triangle: Tensor, width: int) -> Tensor:
    """The symmetric (D, D) of an upper triangle, fp64."""
    matrix = torch.zeros(width, width, dtype=torch.float64, device=triangle.device)
    matrix[_upper(width, triangle.device)] = triangle.double()
    return matrix + matrix.triu(1).T


def ledoit_wolf(scatter: Tensor, count: int, fourth: float) -> float:
    """delta of Ledoit and Wolf, 0 to 1, from S (D, D), N and the sum of all q_t."""
    width = scatter.shape[0]
    square = (scatter / count).square().sum().item()
    spread = square - (scatter.trace().item() / count) ** 2 / width
    noise = (fourth / count - square) / count
    return 1.0 if spread <= 0 else min(max(noise / spread, 0.0), 1.0)


class GaussianRouter:
    """The classifier over a set of tasks."""

    def __init__(self, tasks: Sequence[TaskSums], shrinkage: Shrinkage = "formula") -> None:
        """Raises ValueError without a task."""
        if not tasks:
            raise ValueError("a router needs at least one task")
        self.tasks = tuple(tasks)
        self.freedom = max(1, sum(task.count - 1 for task in tasks))
        """nu."""
        scatter = tasks[0].scatter
        for task in tasks[1:]:
            scatter += task.scatter
        width = scatter.shape[0]
        self.delta = width / (self.freedom + width)
        if shrinkage == "ledoit_wolf":
            counts, fourths = sum(task.count for task in tasks), sum(task.fourth for task in tasks)
            # With 0, features that span less than all of R^D would leave Sigma singular.
            self.delta = max(1e-9, ledoit_wolf(scatter, counts, fourths))
        target = scatter.trace() / self.freedom / width
        # A task of equal features has no scatter: then the nearest mean is as good as any.
        target = target if target > 0 else torch.ones_like(target)
        covariance = (1 - self.delta) * scatter / self.freedom
        covariance.diagonal().add_(self.delta * target)
        self.factor = torch.linalg.cholesky(covariance)
        """L (D, D), lower, with L L^T = Sigma."""
        self.means = self._whitened(torch.stack([task.mean for task in tasks]))
        """L^-1 mu_t, (T, D)."""

    def distances(self, features: Tensor) -> Tensor:
        """d_t(h), (B, T), from h (B, D)."""
        white = self._whitened(features.double())
        return (white[:, None] - self.means[None]).square().sum(dim=2)

    def left_out(self, distances: Tensor) -> Tensor:
        """d of a router of one task without the feature at hand, from d (B,) of the task's own features with it."""
        count = self.tasks[0].count
        grown = count / max(1, count - 1)
        return grown**2 * distances / self._rest(self._pull(count) * distances)

    def temperature(self) -> float:
        """T, from 1 to `HOTTEST`; 1 for one task."""
        means, deviations = self.margins()
        if not len(means):
            return 1.0
        margins = means[:, None] + deviations[:, None] * NORMAL.to(means)
        weights = torch.exp(-NORMAL.square() / 2).to(means)
        weights = weights / weights.sum() / len(means)

        def too_cold(cold: float) -> bool:
            """Whether the mean cross-entropy of the pairs rises with 1/T, at 1/T, by more than what may be rounding."""
            return -(margins * torch.sigmoid(-cold * margins / 2) * weights).sum().item() / 2 > NEGLIGIBLE

        low, high = 1 / HOTTEST, 1.0
        if not too_cold(high):
            return 1.0
        while high / low > 1 + 1e-9:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if too_cold(middle) else (middle, high)
        return 1 / low

    def margins(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of d_j - d_t over task t's own features, each as if the router had not seen it: for
        every ordered pair of tasks, t slowest, (T (T - 1),) each."""
        inverse = torch.cholesky_inverse(self.factor)
        means, deviations = [], []
        for index, task in enumerate(self.tasks):
            scatter, count = task.scatter, task.count
            apart = torch.cat([self.means[:index], self.means[index + 1 :]]) - self.means[index]
            directions = torch.linalg.solve_triangular(self.factor.T, apart.T, upper=True)
            along = (directions * (scatter @ directions)).sum(dim=0) / count
            own = (inverse * scatter).sum() / count
            pull = self._pull(count)
            rest = self._rest(pull * own)
            bias = own * (2 * count - 1) / max(1, count - 1) ** 2
            # Below 0 is a task of which another one holds the same features; they make a margin of 0, as they should.
            means.append((apart.square().sum(dim=1) + (pull * along - bias) / rest).clamp(min=0))
            deviations.append(2 * along.clamp(min=0).sqrt() / rest)
        return torch.cat(means), torch.cat(deviations)

    def told_apart(self) -> Tensor:
        """Share of task t's own features, each as if the router had not seen it, that are nearer to t than to j: for every
        ordered pair of tasks, as `margins`; 0.5 for two tasks of the same features."""
        means, deviations = self.margins()
        return torch.special.ndtr(means / deviations.clamp(min=torch.finfo(torch.float64).tiny))

    def _whitened(self, rows: Tensor) -> Tensor:
        """L^-1 of each row (n, D)."""
        return torch.linalg.solve_triangular(self.factor, rows.T, upper=False).T

    def _pull(self, count: int) -> float:
        """c: how much of Sigma one feature of a task with `count` of them makes up."""
        return (1 - self.delta) / self.freedom * count / max(1, count - 1)

    @staticmethod
    def _rest(share: Tensor) -> Tensor:
        """1 - c d, which is positive but for rounding."""
        return (1 - share).clamp(min=1e-6)


def posterior(distances: Tensor, temperature: float = 1.0) -> Tensor:
    """p(t|h), (B, T), from d (B, T)."""
    return torch.softmax(-distances.double() / (2 * temperature), dim=1)


def _upper(width: int, device: torch.device) -> Tensor:
    """Which entries of a (D, D) are in its upper triangle."""
    return torch.ones(width, width, dtype=torch.bool, device=device).triu()
