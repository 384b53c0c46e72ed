"""Stages that depend on no other: one key and one training for a task, wherever it stands, and equal scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycl.methods.registry import METHODS, method_class, method_params
from raycl.presets import merge
from raycl.sequence.history import Missing
from raycl.sequence.plan import Plan, make_plan
from raycl.spec import parse
from raycl.state.store import Store
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags
from tests.kit.toys import planned_task as toy

ALONE = [name for name in METHODS if method_class(name).alone(method_params(name).model_validate({"name": name}))]


def plan(order: str, method: str, **train: Any) -> Plan:
    """The plan of the tasks a, b, ... in an order."""
    values = {"order": "custom", "tasks": list(order), "method": {"name": method}, "model": {"precision": "fp32"}}
    spec = parse(merge(values, {"train": train}), method_params)
    return make_plan(spec, [toy(name) for name in order], "a" * 64)


def keys(one: Plan) -> dict[str, str]:
    """Task -> key of its stage."""
    return {stage.task: stage.key for stage in one.stages}


def cells(one: Plan) -> dict[tuple[str, frozenset[str]], str]:
    """A task and the tasks seen when it was scored -> key of the cell."""
    tasks = [stage.task for stage in one.stages]
    return {(cell.task, frozenset(tasks[: cell.stage])): cell.key for cell in one.cells}


def test_per_task_is_among_them() -> None:
    """The list is that of the methods whose stages know nothing of each other."""
    assert {"per_task", "route_lora"} == set(ALONE)
    started = {"name": "route_lora", "init": "nearest"}
    assert not method_class("route_lora").alone(method_params("route_lora").model_validate(started))


def test_two_orders_of_routed_branches_end_with_equal_scores(tmp_path: Path, flags: MakeFlags) -> None:
    """Through the command line: the second order trains nothing and scores only after other sets of tasks than the first.

    The route of every answer is kept beside it.
    """
    store = tmp_path / "store"
    for order in ("roget,snippets,plots", "plots,roget,snippets"):
        answer = invoke("run", flags(store, "route_lora", order=order, eval__forward=False))
        assert answer.code == 0, answer.output
    assert "3 in the store, 0 to run" in answer.output
    kept = Store(str(store))
    assert len(kept.stage_keys()) == 3
    scores = [json.loads(path.read_text()) for path in store.rglob("scores.json")]
    assert len(scores) == 9
    (routed,) = {tuple(sorted(row["route"])) for one in scores for row in kept.read_predictions(one["key"])}
    assert routed == ("alone", "known", "probability", "runner_up", "runner_up_probability", "task")


@pytest.mark.parametrize("method", ALONE)
def test_a_stage_has_the_key_of_a_first_stage_wherever_its_task_stands(method: str) -> None:
    """In any order, after any others, and by itself."""
    for order in ("abc", "cab", "bc", "b"):
        for stage in plan(order, method).stages:
            (first,) = plan(stage.task, method).stages
            assert (stage.key, stage.parent, stage.recipe) == (first.key, None, first.recipe)


@pytest.mark.parametrize("method", ALONE)
def test_the_same_tasks_have_the_same_scores_in_whatever_order_they_came(method: str) -> None:
    """A cell is named by its task and the tasks seen; with the task id at hand by its task alone."""
    one, other = cells(plan("abc", method)), cells(plan("cba", method))
    shared = one.keys() & other.keys()
    assert len(shared) == 3 and all(one[cell] == other[cell] for cell in shared)
    if method_class(method).needs_task_id:
        assert len(set(one.values())) == 3


def test_a_setting_per_stage_still_counts() -> None:
    """A task that is trained at another rate is another stage."""
    one, other = plan("ab", "per_task", lr=[1e-3, 2e-3]), plan("ba", "per_task", lr=[1e-3, 2e-3])
    assert not set(keys(one).values()) & set(keys(other).values())
    assert keys(plan("ab", "per_task", lr=[1e-3, 1e-3])) == keys(plan("ba", "per_task", lr=1e-3))


def test_chained_stages_are_named_by_what_came_before() -> None:
    """All other methods: the same task after another one is another stage."""
    one, other = keys(plan("ab", "sin_lora")), keys(plan("ba", "sin_lora"))
    assert not set(one.values()) & set(other.values())


def test_another_order_trains_and_scores_nothing_again(tmp_path: Path, flags: MakeFlags) -> None:
    """Through the command line: the second order finds every stage and, by the task id, every cell."""
    store = tmp_path / "store"
    said = []
    for order in ("roget,snippets", "snippets,roget"):
        answer = invoke("run", flags(store, "per_task", order=order, eval__forward=False))
        assert answer.code == 0, answer.output
        said.append(answer.output)
    assert "0 in the store, 2 to run" in said[0] and "2 in the store, 0 to run" in said[1]
    kept = Store(str(store))
    assert len(kept.stage_keys()) == 2
    assert {kept.manifest(key).stage for key in kept.stage_keys()} == {1}
    assert all(kept.manifest(key).parent is None for key in kept.stage_keys())


def test_what_is_missing_is_looked_up_by_key() -> None:
    """An empty store lacks every stage and every cell once."""
    one = plan("abc", "per_task")
    missing = Missing.of(one, Store("/nowhere/at/all"))
    assert missing.stages == {1, 2, 3} and len(missing.cells) == 3
