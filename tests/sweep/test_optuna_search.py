"""Optuna's search as a sweep uses it, without Ray's processes; real sweeps are in test_sweep.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune

from raycl.errors import SpecError
from raycl.sweep.optuna_search import STARTUP_TRIALS, OptunaSearcher, dimension
from raycl.sweep.spaces import Space, decode

SMALL = {"a": [1, [2, 3]], "b": ["x", "y", None]}
"""Six points."""
WIDE = {"lr": tune.loguniform(1e-5, 1e-1), "rank": tune.randint(1, 100), "kind": ["x", "y"]}


def search(dimensions: dict[str, Any], first: Iterable[dict[str, Any]] = (), seed: int = 0) -> OptunaSearcher:
    """A search over these dimensions."""
    return OptunaSearcher(Space("space.py", dimensions, {}, [*first]), seed, "AP")


def suggested(found: OptunaSearcher, names: Iterable[int]) -> list[str]:
    """Points, each reported as a whole sequence before the next is asked for."""
    points = []
    for name in names:
        points.append(json.dumps(decode(found.suggest(str(name))["point"]), sort_keys=True))
        found.on_trial_result(str(name), {"stage": 1, "AP": name / 2})
        found.on_trial_complete(str(name), {"stage": 2, "AP": float(name), "whole": True})
    return points


def test_no_point_comes_twice_while_another_is_left() -> None:
    """Six trials are the six points, those of FIRST first; only then do points come again."""
    first = [{"a": [2, 3], "b": None}, {"a": 1, "b": "y"}]
    points = suggested(search(SMALL, first), range(8))
    assert [json.loads(point) for point in points[:2]] == first
    assert len(set(points[:6])) == 6
    assert {*points[6:]} <= {*points[:6]}


def test_a_point_that_stands_twice_in_first_is_tried_once() -> None:
    """Another one takes the second place."""
    points = suggested(search(SMALL, [{"a": 1, "b": "x"}] * 2), range(6))
    assert len(set(points)) == 6


def test_a_seed_fixes_the_points() -> None:
    """The same points for the same seed and scores, also where TPE chooses them; others for another seed."""
    trials = range(STARTUP_TRIALS + 5)
    assert suggested(search(WIDE), trials) == suggested(search(WIDE), trials)
    assert suggested(search(WIDE), trials) != suggested(search(WIDE, seed=1), trials)


def test_scores_guide_the_search() -> None:
    """With AP = rank, TPE's points lie higher than random ones."""
    found, ranks = search({"rank": tune.randint(1, 1000)}), []
    for name in range(STARTUP_TRIALS + 20):
        ranks.append(found.suggest(str(name))["point"]["rank"])
        found.on_trial_complete(str(name), {"AP": float(ranks[-1]), "whole": True})
    assert np.mean(ranks[STARTUP_TRIALS:]) > np.mean(ranks[:STARTUP_TRIALS]) + 100


def test_a_search_that_is_taken_up_again_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """The same points as without the break, a trial that ran at the time included; what is kept is JSON."""
    first = [{"lr": 0.01, "rank": 8, "kind": "y"}] * 2
    whole, before, after = search(WIDE, first), search(WIDE, first), search(WIDE, first)
    for found in (whole, before):
        suggested(found, range(12))
        found.suggest("open")
    before.save_to_dir(str(tmp_path), "now")
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["trials"][-1]["state"] == "running"
    after.restore_from_dir(str(tmp_path))
    for found in (whole, after):
        found.on_trial_complete("open", {"AP": 3.0, "whole": True})
    assert suggested(after, range(12, 16)) == suggested(whole, range(12, 16))


def test_a_record_of_another_search_is_refused(tmp_path: Path) -> None:
    """Its values may not even be in the ranges."""
    search(SMALL).save(str(tmp_path / "search"))
    for other in (search(WIDE), search(SMALL, seed=1)):
        with pytest.raises(SpecError, match="another space or with another seed"):
            other.restore(str(tmp_path / "search"))


def test_optuna_is_told_how_trials_ended() -> None:
    """Whole ones with their AP, ended ones as pruned with what they reported, failed ones as failed, the rest as running."""
    found = search(SMALL)
    for name in ("whole", "stopped", "failed", "died", "undefined", "open"):
        found.suggest(name)
        found.on_trial_result(name, {"stage": 1, "AP": 50.0})
    found.on_trial_complete("whole", {"stage": 2, "AP": 60.0, "whole": True})
    found.on_trial_complete("stopped", {"stage": 1, "AP": 90.0, "whole": False})
    found.on_trial_result("failed", {"stage": 0, "AP": 0.0, "failed": "loss is nan"})
    found.on_trial_complete("failed", {"stage": 0, "AP": 0.0, "failed": "loss is nan", "whole": False})
    found.on_trial_complete("died", None, error=True)
    found.on_trial_complete("undefined", {"stage": 2, "AP": float("nan"), "whole": True})
    found.on_trial_complete("never heard of", {"AP": 1.0, "whole": True})
    trials = found.study().trials
    assert [(trial.state, trial.value) for trial in trials] == [
        (TrialState.COMPLETE, 60.0),
        (TrialState.PRUNED, None),
        (TrialState.FAIL, None),
        (TrialState.FAIL, None),
        (TrialState.PRUNED, None),
        (TrialState.RUNNING, None),
    ]
    assert trials[1].intermediate_values == {1: 50.0}
    assert trials[2].intermediate_values == {}


@pytest.mark.parametrize(
    ("sampler", "distribution", "ends"),
    [
        (tune.uniform(0.5, 2), FloatDistribution(0.5, 2), (0.5, 2.0)),
        (tune.loguniform(1e-4, 1), FloatDistribution(1e-4, 1, log=True), (1e-4, 1.0)),
        (tune.quniform(0.3, 1, 0.1), IntDistribution(3, 10), (0.1 * 3, 1.0)),
        (tune.qloguniform(0.1, 0.9, 0.1), IntDistribution(1, 9, log=True), (0.1, 0.9)),
        (tune.randint(2, 9), IntDistribution(2, 8), (2, 8)),
        (tune.lograndint(2, 9), IntDistribution(2, 8, log=True), (2, 8)),
        (tune.qrandint(3, 12, 4), IntDistribution(1, 3), (4, 12)),
        (tune.qrandint(3, 12), IntDistribution(3, 11), (3, 11)),
        (tune.qlograndint(4, 64, 4), IntDistribution(1, 16, log=True), (4, 64)),
    ],
)
def test_samplers_have_the_same_values_as_in_random_search(sampler: Any, distribution: Any, ends: tuple) -> None:
    """Range by range, with Tune's own draws between the ends, and back and forth."""
    found = dimension(sampler)
    assert found.distribution == distribution
    assert (found.value(distribution.low), found.value(distribution.high)) == ends
    assert all(type(found.value(found.distribution.low)) is type(end) for end in ends)
    drawn = sampler.sample(size=200, random_state=np.random.RandomState(0))
    assert ends[0] <= min(drawn) and max(drawn) <= ends[1]
    assert all(found.value(found.drawn(value)) == value for value in drawn)


@pytest.mark.parametrize(
    ("dimensions", "first", "words"),
    [
        ({"a": tune.randn(0, 1)}, [], "SPACE['a']: Optuna needs a list or a range"),
        ({"a": tune.quniform(0, 1, 0.1)}, [{"a": 0.25}], "FIRST[0]: 0.25 is no multiple of 0.1"),
        ({"a": tune.randint(0, 4)}, [{"a": 1}, {"a": 4}], "FIRST[1]"),
    ],
)
def test_what_optuna_cannot_draw_is_named(dimensions: dict[str, Any], first: list[Any], words: str) -> None:
    """Before any trial starts."""
    with pytest.raises(SpecError) as raised:
        search(dimensions, first)
    assert words in str(raised.value)
