"""A store that version 0.1 made, before the rooms were rebuilt, is read by the code of today under the same keys."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.methods.registry import method_params
from raycl.sequence.history import Missing, stored_matrix, stored_stage
from raycl.sequence.plan import Plan, make_plan
from raycl.spec import RunSpec, parse
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from tests.kit.moved_keys import MOVED
from tests.kit.places import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "store-0.1-sequences.json").read_text())
SEQUENCES: dict[str, Any] = MADE["sequences"]
SAME = [name for name, made in SEQUENCES.items() if made["spec"]["method"]["name"] not in MOVED]
OTHER = [name for name in SEQUENCES if name not in SAME]
"""Sequences of methods whose keys have moved since, for the reasons in MOVED."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the old store."""
    return Store(str(shutil.copytree(FIXTURES / "store-0.1", tmp_path / "store")))


def planned(name: str) -> tuple[RunSpec, Plan]:
    """The spec of an old sequence, read from its file, and its plan as it is made today."""
    spec = parse(SEQUENCES[name]["spec"], method_params)
    return spec, make_plan(spec, load_tasks(spec.tasks, spec.data), MADE["model_fingerprint"])


@pytest.mark.parametrize("name", SAME)
def test_an_unchanged_spec_has_the_same_stages_and_finds_them_all(name: str, store: Store) -> None:
    """No stage is trained again. Scores are: version 0.1 let a checkpoint's own settings take part in generation."""
    _, plan = planned(name)
    assert [stage.key for stage in plan.stages] == SEQUENCES[name]["stages"]
    missing = Missing.of(plan, store)
    assert not missing.stages
    assert missing.cells == {cell.key for cell in plan.cells}


@pytest.mark.parametrize("name", SAME)
def test_old_scores_are_still_read_by_their_keys(name: str, store: Store) -> None:
    """They make the matrix that was shown."""
    spec, plan = planned(name)
    cells = [replace(cell, key=key) for cell, key in zip(plan.cells, SEQUENCES[name]["cells"], strict=True)]
    assert stored_matrix(store, replace(plan, cells=cells), spec.tasks).to_json() == SEQUENCES[name]["matrix"]


@pytest.mark.parametrize("name", OTHER)
def test_stages_of_an_older_arithmetic_are_not_taken_for_todays(name: str, store: Store) -> None:
    """The plan of a method that has moved finds none of its old stages: they would be trained anew."""
    _, plan = planned(name)
    assert Missing.of(plan, store).stages == {stage.stage for stage in plan.stages}
    assert all(store.has(key) for key in SEQUENCES[name]["stages"])


@pytest.mark.parametrize("name", SEQUENCES)
def test_its_stages_are_read_with_their_logs(name: str, store: Store) -> None:
    """Every file verifies, branches have their shapes, and the training's steps come back as events."""
    assert store.verify() == []
    _, plan = planned(name)
    keys = SEQUENCES[name]["stages"]
    state = store.read_state(keys[-1])
    assert [part.task for part in state.parts] == ["roget", "snippets"]
    for branch in state.branches:
        assert branch.rank == 2
        assert all(torch.isfinite(value).all() for value in (*branch.a.values(), *branch.b.values()))
    for stage, key in zip(plan.stages, keys, strict=True):
        end = stored_stage(store, replace(stage, key=key))
        assert (end.key, end.cached, [step.step for step in end.log]) == (key, True, [1, 2])
        assert all(step.loss > 0 for step in end.log)
