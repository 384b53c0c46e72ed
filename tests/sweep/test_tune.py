"""Optuna's search as a sweep uses it; trials themselves are in test_sweep.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray import tune

from raycl.sweep.tune import OptunaSequences

SPACE = {"a": tune.choice(["1", "2"]), "b": tune.choice(["x", "y", "z"])}


def search(first: list[dict[str, str]] | None = None) -> OptunaSequences:
    """A search over six points."""
    found = OptunaSequences(points_to_evaluate=first, seed=0)
    assert found.set_search_properties("AP", "max", SPACE)
    return found


def suggested(found: OptunaSequences, names: range) -> list[str]:
    """Points, each reported as a whole sequence before the next is asked for."""
    points = []
    for name in names:
        points.append(json.dumps(found.suggest(str(name)), sort_keys=True))
        found.on_trial_complete(str(name), {"AP": float(name), "whole": True})
    return points


def test_no_point_comes_twice_while_another_is_left() -> None:
    """Six trials are the six points, the given one first; only then do points come again."""
    points = suggested(search([{"a": "2", "b": "z"}]), range(8))
    assert json.loads(points[0]) == {"a": "2", "b": "z"}
    assert len(set(points[:6])) == 6
    assert {*points[6:]} <= {*points[:6]}


def test_a_search_that_is_taken_up_again_knows_what_it_suggested(tmp_path: Path) -> None:
    """The rest of the points, none of the first."""
    before = search()
    points = suggested(before, range(3))
    before.save(str(tmp_path / "search"))
    after = search()
    after.restore(str(tmp_path / "search"))
    assert len({*points, *suggested(after, range(3, 6))}) == 6


def test_a_trial_that_ended_early_does_not_count_as_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its AP is over fewer tasks: Optuna is told nothing but that it is over."""
    told = []
    monkeypatch.setattr(
        "ray.tune.search.optuna.OptunaSearch.on_trial_complete", lambda self, name, result, error: told.append(result)
    )
    found = search()
    found.on_trial_complete("0", {"AP": 90.0, "whole": False})
    found.on_trial_complete("1", {"AP": 60.0, "whole": True})
    assert told == [None, {"AP": 60.0, "whole": True}]
