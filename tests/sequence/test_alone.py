"""Stages that depend on no other: one key and one training for a task, wherever it stands, and equal scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raycl.events import Scored, StageEnd, StageEvent
from raycl.methods.registry import METHODS, method_class, method_params
from raycl.presets import merge
from raycl.sequence.history import Missing
from raycl.sequence.job import make_job
from raycl.sequence.plan import Plan, make_plan
from raycl.sequence.resolve import resolve
from raycl.sequence.roles import train_ahead
from raycl.sequence.worker import SequenceWorker
from raycl.spec import parse
from raycl.state.store import Store
from raycl.train.workers import Workers
from tests.kit.cli import invoke
from tests.kit.figures import no_figures
from tests.kit.planned import planned_task as toy
from tests.kit.runs import MakeFlags

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
    assert len(re.findall(r"routes: \d+\.\d % right", answer.output)) == 3
    note = max(tmp_path.glob("output-*/routing.json"), key=lambda path: path.stat().st_mtime)
    found = json.loads(note.read_text())
    assert found["tasks"] == ["plots", "roget", "snippets"]
    assert all(sum(row) == 8 for row in found["counts"])
    assert found["changed"] is not None and found["oracle_ap"] == found["routing/oracle_AP"]
    assert note.with_suffix(".png").stat().st_size > 0
    scores = [json.loads(path.read_text()) for path in store.rglob("scores.json")]
    assert len(scores) == 10, "six cells of one order, two tasks alone, two tasks after another first one"
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


def test_routed_tasks_are_scored_alone_before_their_row_and_only_once() -> None:
    """The first task alone is the first cell; that of every later one stands before its row, and counts as missing."""
    one = plan("abc", "route_lora")
    assert [(cell.stage, cell.task, cell.state) for cell in one.own] == [
        (stage.stage, stage.task, (stage.key,)) for stage in one.stages
    ]
    assert one.own[0].key == one.cells[0].key
    assert one.to_score(1) == one.cells_of(1)
    assert one.to_score(3) == [one.own[2], *one.cells_of(3)]
    assert Missing.of(one, Store("/nowhere/at/all")).cells == {cell.key for cell in (*one.cells, *one.own)}
    assert {cell.key for cell in plan("cab", "route_lora").own} == {cell.key for cell in one.own}
    assert not plan("abc", "per_task").own and not plan("abc", "sin_lora").own


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
        with no_figures():
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


def test_a_group_that_trains_ahead_leaves_what_another_makes(tmp_path: Path, flags: MakeFlags) -> None:
    """Stage 2 is another run's: stages 1 and 3 are trained, nothing waits and nothing is scored."""
    fields = flags.spec("route_lora", "llama") | {"order": "roget,snippets,plots"}
    job = make_job(resolve("laptop", [fields]), Store(str(tmp_path / "store")))
    stages = job.plan.stages
    lease = job.store.lease(stages[1].key)
    assert lease.acquire(0)
    events: list[StageEvent] = []
    train_ahead(SequenceWorker(job, Workers(), events.append))
    lease.release()
    assert [job.store.has(stage.key) for stage in stages] == [True, False, True]
    assert [event.stage for event in events if isinstance(event, StageEnd)] == [3, 1]
    assert not any(isinstance(event, Scored) for event in events)


@pytest.mark.parametrize(
    ("method", "workers", "words"),
    [("o_lora", 2, "each goes on from the one before"), ("route_lora", 0, "set --workers to 1 or more")],
)
def test_groups_that_cannot_be_are_refused(
    tmp_path: Path, flags: MakeFlags, method: str, workers: int, words: str
) -> None:
    """A method whose stages depend on each other, and no workers: the same answer at once, before anything is started."""
    answer = invoke("run", flags(tmp_path / "store", method, order="roget,snippets", workers=workers, groups=2))
    assert answer.code == 2 and "groups: 2" in answer.stderr and words in answer.stderr
    assert not (tmp_path / "store").exists()
