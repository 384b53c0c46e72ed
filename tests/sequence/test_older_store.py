"""A store that version 0.1 made, before the rooms were rebuilt, is read by the code of today under the same keys."""

from __future__ import annotations

import json
import shutil
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
from tests.kit.places import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "store-0.1-sequences.json").read_text())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the old store."""
    return Store(str(shutil.copytree(FIXTURES / "store-0.1", tmp_path / "store")))


def planned(name: str) -> tuple[RunSpec, Plan]:
    """The spec of an old sequence, read from its file, and its plan as it is made today."""
    spec = parse(MADE["sequences"][name]["spec"], method_params)
    return spec, make_plan(spec, load_tasks(spec.tasks, spec.data), MADE["model_fingerprint"])


@pytest.mark.parametrize("name", MADE["sequences"])
def test_an_unchanged_spec_has_the_same_keys_and_finds_everything(name: str, store: Store) -> None:
    """Stages and cells by the same keys; nothing is missing; the matrix is the one that was shown."""
    spec, plan = planned(name)
    assert [stage.key for stage in plan.stages] == MADE["sequences"][name]["stages"]
    assert [cell.key for cell in plan.cells] == MADE["sequences"][name]["cells"]
    assert not Missing.of(plan, store)
    assert stored_matrix(store, plan, spec.tasks).to_json() == MADE["sequences"][name]["matrix"]


@pytest.mark.parametrize("name", MADE["sequences"])
def test_its_stages_are_read_with_their_logs(name: str, store: Store) -> None:
    """Every file verifies, branches have their shapes, and the training's steps come back as events."""
    assert store.verify() == []
    _, plan = planned(name)
    state = store.read_state(plan.stages[-1].key)
    assert [part.task for part in state.parts] == ["roget", "snippets"]
    for branch in state.branches:
        assert branch.rank == 2
        assert all(torch.isfinite(value).all() for value in (*branch.a.values(), *branch.b.values()))
    for stage in plan.stages:
        end = stored_stage(store, stage)
        assert (end.key, end.cached, [step.step for step in end.log]) == (stage.key, True, [1, 2])
        assert all(step.loss > 0 for step in end.log)
