"""The Gaussian router against independent formulas: scikit-learn, scipy, and features really left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from raycl.adapters.gaussian_router import (
    GaussianRouter,
    TaskSums,
    ledoit_wolf,
    packed,
    posterior,
    scatter_of,
    unpacked,
)

WIDTH = 12


def sums(features: np.ndarray) -> TaskSums:
    """What a task keeps, from its features (n, D), by numpy."""
    mean = features.mean(axis=0)
    apart = features - mean
    fourth = float(((apart**2).sum(axis=1) ** 2).sum())
    return TaskSums(torch.tensor(mean), len(features), packed(torch.tensor(apart.T @ apart)), fourth)


def draw(counts: tuple[int, ...], width: int = WIDTH, apart: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """Features of some tasks: one random covariance, random means."""
    random = np.random.default_rng(seed)
    shape = random.normal(size=(width, width)) / np.sqrt(width) + 0.3 * np.eye(width)
    return [apart * random.normal(size=width) + random.normal(size=(count, width)) @ shape for count in counts]


def test_the_posterior_is_that_of_scikit_learn():
    """LDA with the same shrinkage. It divides the scatter by N and not by nu, which is a temperature of N / nu."""
    tasks = draw((30, 30, 30))
    router = GaussianRouter([sums(one) for one in tasks])
    assert router.freedom == 87 and router.delta == pytest.approx(WIDTH / (87 + WIDTH))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=router.delta, priors=[1 / 3] * 3)
    theirs.fit(np.concatenate(tasks), np.repeat([0, 1, 2], 30))
    fresh = draw((40,), seed=1)[0]
    ours = posterior(router.distances(torch.tensor(fresh)), temperature=87 / 90)
    assert np.abs(ours.numpy() - theirs.predict_proba(fresh)).max() < 1e-9
    assert 0.05 < (ours.max(dim=1).values < 0.99).double().mean() < 0.95


def test_the_posterior_is_that_of_normal_densities():
    """Bayes' rule with scipy's densities and the covariance worked out by numpy, for tasks of uneven size."""
    tasks = draw((9, 40, 21))
    apart = np.concatenate([one - one.mean(axis=0) for one in tasks])
    nu = 8 + 39 + 20
    delta, pooled = WIDTH / (nu + WIDTH), apart.T @ apart / nu
    covariance = (1 - delta) * pooled + delta * np.trace(pooled) / WIDTH * np.eye(WIDTH)
    fresh = draw((40,), seed=1)[0]
    logs = np.stack([multivariate_normal(one.mean(axis=0), covariance).logpdf(fresh) for one in tasks], axis=1)
    wanted = np.exp(logs - logs.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    ours = posterior(GaussianRouter([sums(one) for one in tasks]).distances(torch.tensor(fresh)))
    assert np.abs(ours.numpy() - wanted).max() < 1e-9


@pytest.mark.parametrize("counts", [(30, 50), (4, 3)])
def test_ledoit_wolf_is_that_of_scikit_learn(counts):
    """The shrinkage of all features, each less its task's mean, from the sums alone; also with fewer features than D."""
    tasks = draw(counts)
    apart = np.concatenate([one - one.mean(axis=0) for one in tasks])
    fourth = sum(sums(one).fourth for one in tasks)
    wanted = ledoit_wolf_shrinkage(apart, assume_centered=True)
    assert 0 < wanted < 1
    assert ledoit_wolf(torch.tensor(apart.T @ apart), len(apart), fourth) == pytest.approx(wanted, rel=1e-10)
    assert GaussianRouter([sums(one) for one in tasks], "ledoit_wolf").delta == pytest.approx(wanted, rel=1e-10)


def test_the_order_of_the_tasks_does_not_matter():
    """Tasks (a, b, c) and (c, a, b) give the same distances, temperature and margins, task by task."""
    tasks = [sums(one) for one in draw((9, 40, 21))]
    turned = [tasks[2], tasks[0], tasks[1]]
    fresh = torch.tensor(draw((20,), seed=1)[0])
    first, second = GaussianRouter(tasks), GaussianRouter(turned)
    assert (first.distances(fresh) - second.distances(fresh)[:, [1, 2, 0]]).abs().max() < 1e-9
    assert first.temperature() == pytest.approx(second.temperature(), abs=1e-6)


def test_sums_of_halves_are_those_of_the_whole():
    """Second moments and means of two workers, added up, give the whole's scatter."""
    whole = draw((50,))[0] + 5
    halves = [whole[0::2], whole[1::2]]
    second = sum(half.T @ half for half in halves) / 50
    mean = sum(half.sum(axis=0) for half in halves) / 50
    found = scatter_of(torch.tensor(second), torch.tensor(mean), 50)
    wanted = sums(whole).scatter
    assert (found - wanted).norm() < 1e-10 * wanted.norm()


def test_a_triangle_gives_its_matrix_back():
    """Row by row, the diagonal included."""
    matrix = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]], dtype=torch.float64)
    assert packed(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(unpacked(packed(matrix).float(), 3), matrix)


def test_two_identical_tasks_are_equally_likely():
    """And a third one, far away, is not; a twin is no reason to doubt the rest."""
    one, other = draw((30, 30), apart=10.0)
    router = GaussianRouter([sums(one), sums(other), sums(one)])
    chances = posterior(router.distances(torch.tensor(one)), router.temperature())
    assert (chances - torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)).abs().max() < 1e-9
    assert router.temperature() < 2


def test_features_without_scatter_go_to_the_nearest_mean():
    """Tasks of one example, or of equal ones, leave nothing to measure distances by."""
    tasks = [sums(np.zeros((1, 3))), sums(np.tile([0.0, 2.0, 0.0], (4, 1)))]
    router = GaussianRouter(tasks)
    distances = router.distances(torch.tensor([[0.0, 0.5, 0.0], [0.0, 1.5, 0.0]]))
    assert distances.argmin(dim=1).tolist() == [0, 1]
    assert router.temperature() == 1.0
    with pytest.raises(ValueError, match="at least one task"):
        GaussianRouter([])


def without(task: np.ndarray, index: int, nu: int, delta: float, scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance once a feature is really taken out of its task, nu and the shrinkage's target held fixed."""
    rest = np.delete(task, index, axis=0)
    change = (rest - rest.mean(axis=0)).T @ (rest - rest.mean(axis=0)) - sums(task).scatter.numpy()
    target = np.trace(scatter) / nu / len(scatter) * np.eye(len(scatter))
    return rest.mean(axis=0), (1 - delta) * (scatter + change) / nu + delta * target


def test_a_left_out_features_distance_by_leaving_it_out():
    """Sherman and Morrison's formula gives what the router without the feature gives, also with n < D."""
    task = draw((8,))[0]
    router = GaussianRouter([sums(task)])
    found = router.left_out(router.distances(torch.tensor(task))[:, 0])
    for index, feature in enumerate(task):
        mean, covariance = without(task, index, 7, router.delta, sums(task).scatter.numpy())
        wanted = (feature - mean) @ np.linalg.solve(covariance, feature - mean)
        assert found[index].item() == pytest.approx(wanted, rel=1e-9)
    assert (found > router.distances(torch.tensor(task))[:, 0]).all()


def test_margins_are_those_of_left_out_features():
    """Mean and deviation of d_j - d_t over task t with every feature really left out, but for the spread of d itself."""
    tasks = draw((150, 100), width=40)
    router = GaussianRouter([sums(one) for one in tasks])
    scatter = sum(sums(one).scatter for one in tasks).numpy()
    means, deviations = router.margins()
    for own, other, mean, deviation in ((0, 1, means[0], deviations[0]), (1, 0, means[1], deviations[1])):
        margins = []
        for index, feature in enumerate(tasks[own]):
            middle, covariance = without(tasks[own], index, 248, router.delta, scatter)
            near, far = feature - middle, feature - tasks[other].mean(axis=0)
            margins.append(far @ np.linalg.solve(covariance, far) - near @ np.linalg.solve(covariance, near))
        assert mean.item() == pytest.approx(np.mean(margins), rel=0.02)
        assert deviation.item() == pytest.approx(np.std(margins), rel=0.05)


def cross_entropy(router: GaussianRouter, fresh: list[np.ndarray], temperature: float) -> float:
    """That of the router on features of its tasks."""
    chances = [posterior(router.distances(torch.tensor(one)), temperature)[:, i] for i, one in enumerate(fresh)]
    return -torch.cat(chances).clamp(min=1e-300).log().mean().item()


def test_the_temperature_mends_what_few_features_overstate():
    """With as many numbers as features the router is too sure; T brings the cross-entropy on fresh features to within 2 %
    of the best that any T gives."""
    both = draw((1060, 1060, 1060), width=100, apart=0.1)
    router = GaussianRouter([sums(one[:60]) for one in both])
    fresh = [one[60:] for one in both]
    found = router.temperature()
    best = min(cross_entropy(router, fresh, float(t)) for t in np.geomspace(1, 8, 40))
    assert found > 2
    assert cross_entropy(router, fresh, found) < 1.02 * best < 0.95 * cross_entropy(router, fresh, 1.0)


def test_with_many_features_the_temperature_is_one():
    """What was estimated from many needs no mending."""
    assert 1.0 <= GaussianRouter([sums(one) for one in draw((4000, 4000), apart=0.5)]).temperature() < 1.02
