"""The plan of a sequence: what changes a key, what must not, and what runs with each other share."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from raycl.methods.registry import method_params
from raycl.presets import merge
from raycl.sequence.plan import Plan, make_plan
from raycl.spec import RunSpec, parse
from raycl.tasks.code import Code
from raycl.tasks.task import Example, Task

MODEL = "a" * 64
METHODS: list[dict[str, Any]] = [
    {"name": "sin_lora"},
    {"name": "inc_lora"},
    {"name": "o_lora"},
    {"name": "inf_lora"},
    {"name": "gain_lora", "over": "o_lora"},
    {"name": "gain_lora", "over": "inf_lora"},
]
OTHER: dict[str, Any] = {
    "rank": 16,
    "alpha": 8.0,
    "dropout": 0.25,
    "targets": ["o_proj"],
    "lambda1": 3.0,
    "lambda2": 0.7,
    "design": "random_projected",
    "epsilon": 0.9,
    "energy_power": 2,
    "horizon": 7,
    "layer_chunks": 2,
    "gate_hidden": [5],
    "gate_score": "dot",
    "gate_squash": "clipped_abs",
    "gate_pooling": "max",
    "gate_input": "raw",
    "gate_region": "all_input",
    "gate_epsilon": 0.9,
    "gate_energy_power": 2,
    "gate_chunks": 2,
    "key_init": "random",
    "init_constraint": False,
    "update_constraint": False,
    "detach_old": True,
}
"""Another value for every hyper-parameter."""
ONLY_LATER = {"lambda1", "init_constraint", "update_constraint", "detach_old"}
"""Hyper-parameters without effect at stage 1."""
DEAD = {"o_lora": {"design", "epsilon", "energy_power", "layer_chunks"}, "inf_lora": {"lambda1", "lambda2"}}
"""Hyper-parameters of GainLoRA that its LoRA part does not read."""


def toy(name: str, text: str = "a text", count: int = 3) -> Task:
    """A task without files."""
    rows = tuple(Example(f"{name}/{i}", "Judge.\n", f"{text} {i}", "\nAnswer:", ("yes",)) for i in range(count))
    return Task(name, "toy", "exact_match", ("yes", "no"), rows, rows[:2], {})


TASKS = [toy(name) for name in ("a", "b", "c", "d", "e")]


def plan_of(tasks: list[Task] = TASKS, fingerprint: str = MODEL, **changes: Any) -> Plan:
    """The plan of a sequence with some fields changed."""
    names = [task.name for task in tasks]
    values = {"order": "custom", "tasks": names, "method": {"name": "o_lora"}, "eval": {"forward": True}}
    return make_plan(parse(merge(values, changes), method_params), tasks, fingerprint)


def stage_keys(plan: Plan) -> list[str]:
    """The keys of the stages, in order."""
    return [stage.key for stage in plan.stages]


def shared(first: Plan, second: Plan) -> int:
    """How many stages at the start of two plans are the same; no later one may be."""
    same = [one == other for one, other in zip(stage_keys(first), stage_keys(second), strict=False)]
    assert same == sorted(same, reverse=True)
    return sum(same)


def live(method: dict[str, Any]) -> list[str]:
    """The hyper-parameters a method reads."""
    dead = DEAD[method["over"]] if "over" in method else set()
    return [name for name in method_params(method["name"]).model_fields if name in OTHER and name not in dead]


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in METHODS for name in live(method)], ids=lambda value: str(value)
)
def test_every_live_hyper_parameter_changes_the_key(method: dict[str, Any], name: str) -> None:
    """From stage 1 on, or from stage 2 on where it has no effect at stage 1."""
    changed = plan_of(method=method | {name: OTHER[name]})
    assert shared(plan_of(method=method), changed) == (1 if name in ONLY_LATER else 0)


@pytest.mark.parametrize("over", ["o_lora", "inf_lora"])
def test_a_hyper_parameter_that_the_lora_part_does_not_read_changes_nothing(over: str) -> None:
    """GainLoRA over O-LoRA ignores InfLoRA's settings, and the other way round."""
    method = {"name": "gain_lora", "over": over}
    changes = {name: OTHER[name] for name in DEAD[over]}
    assert shared(plan_of(method=method), plan_of(method=method | changes)) == len(TASKS)


def test_every_method_has_stages_of_its_own() -> None:
    """No two methods share a stage, both forms of GainLoRA counted."""
    keys = [key for method in METHODS for key in stage_keys(plan_of(method=method))]
    assert len(set(keys)) == len(METHODS) * len(TASKS)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"precision": "fp32"}},
        {"model": {"dropout": 0.1}},
        {"data": {"max_source_tokens": 100}},
        {"data": {"max_target_tokens": 7}},
        {"train": {"lr": 1e-4}},
        {"train": {"epochs": 2}},
        {"train": {"batch_size": 16}},
        {"train": {"schedule": "linear"}},
        {"train": {"warmup": 0.1}},
        {"train": {"weight_decay": 0.1}},
        {"train": {"max_grad_norm": 0.5}},
        {"train": {"keep": "best", "holdout": 0.1}},
    ],
    ids=str,
)
def test_what_determines_a_stage_changes_every_key(changes: dict[str, Any]) -> None:
    """Seed, lengths, precision and the optimiser's settings; and the scores with them."""
    plan, other = plan_of(), plan_of(**changes)
    assert shared(plan, other) == 0
    trained = [{cell.key for cell in each.cells if cell.stage} for each in (plan, other)]
    assert not trained[0] & trained[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"workers": 0},
        {"preset": "paper"},
        {"order": "another-name"},
        {"train": {"zero_stage": 3}},
        {"train": {"engine": "torch"}},
        {"train": {"micro_batch_size": 2}},
        {"train": {"log_every": 1}},
        {"train": {"checkpoint_every": 3}},
        {"train": {"holdout": 0.2}},
        {"eval": {"batch_size": 3}},
        {"model": {"name": "elsewhere/the-same"}},
        {"data": {"source": "/a/copy/of/the/same/data"}},
    ],
    ids=str,
)
def test_what_only_says_how_and_where_changes_no_key(changes: dict[str, Any]) -> None:
    """World size, sharding, logging and paths; a held-out share that selects nothing; neither stages nor cells change."""
    assert (stage_keys(plan_of()), plan_of().cells) == (stage_keys(plan_of(**changes)), plan_of(**changes).cells)


def test_the_best_epoch_of_nothing_held_out_is_the_last_one() -> None:
    """`keep: best` selects nothing without a held-out share, so the stages are those of `keep: last`."""
    best, last = (plan_of(train={"keep": keep, "holdout": 0.0}) for keep in ("best", "last"))
    assert stage_keys(best) == stage_keys(last)
    assert shared(plan_of(train={"keep": "best", "holdout": 0.1}), last) == 0


def test_a_held_out_share_that_selects_changes_the_key() -> None:
    """With `keep: best` it takes examples away."""
    settings = [{"keep": "best", "holdout": share} for share in (0.1, 0.2)]
    assert shared(plan_of(train=settings[0]), plan_of(train=settings[1])) == 0


def test_another_model_changes_every_key() -> None:
    """The fingerprint counts, the untrained row included."""
    plan, other = plan_of(), plan_of(fingerprint="b" * 64)
    assert shared(plan, other) == 0
    assert not {cell.key for cell in plan.cells} & {cell.key for cell in other.cells}


def test_other_training_data_change_the_keys_from_their_stage_on() -> None:
    """Stages before the changed task are shared, those after it are not."""
    tasks = [replace(task, train=toy(task.name, "new").train) if task.name == "c" else task for task in TASKS]
    assert shared(plan_of(), plan_of(tasks)) == 2


def test_other_test_data_change_only_their_cells() -> None:
    """No stage depends on a test split."""
    tasks = [replace(task, test=toy(task.name, "new").test) if task.name == "c" else task for task in TASKS]
    plan, other = plan_of(), plan_of(tasks)
    assert shared(plan, other) == len(TASKS)
    pairs = zip(plan.cells, other.cells, strict=True)
    assert all((one.key != two.key) == (one.task == "c") for one, two in pairs)


def test_another_order_shares_the_stages_before_the_difference() -> None:
    """A prefix of the tasks is a prefix of the keys, whatever the length of the sequence."""
    assert shared(plan_of(), plan_of(TASKS[:3])) == 3
    assert shared(plan_of(), plan_of([TASKS[0], TASKS[1], TASKS[3], TASKS[2]])) == 2


def test_each_stage_names_its_parent() -> None:
    """The chain is data: every recipe holds the key before it."""
    plan = plan_of()
    assert [stage.parent for stage in plan.stages] == [None, *stage_keys(plan)[:-1]]
    assert [stage.recipe["parent"] for stage in plan.stages] == [None, *stage_keys(plan)[:-1]]


def test_a_weight_without_effect_at_stage_1_is_not_in_its_key() -> None:
    """Runs that differ in lambda1 alone share stage 1 and nothing else; also as a list."""
    keys = [stage_keys(plan_of(method={"name": "o_lora", "lambda1": value})) for value in (0.1, 0.5, [7, 0.5, 1, 1, 1])]
    assert keys[0][0] == keys[1][0] == keys[2][0]
    assert keys[1][1] == keys[2][1]
    assert len({key for each in keys for key in each}) == 1 + 2 + 3 * 3


def test_the_untrained_row_is_shared_by_all_methods_and_seeds() -> None:
    """It depends on model, tests and lengths alone."""
    rows = [
        [cell.key for cell in plan_of(method=method, seed=seed, train={"lr": lr}).cells_of(0)]
        for method, seed, lr in itertools.product(METHODS, (0, 1), (1e-3, 1e-4))
    ]
    assert all(row == rows[0] for row in rows)
    assert len(rows[0]) == len(TASKS)
    assert rows[0] != [cell.key for cell in plan_of(model={"precision": "fp32"}).cells_of(0)]


def test_the_cells_are_all_seen_tasks_and_with_forward_the_next_one() -> None:
    """Upper triangle for FWT, and the untrained row; without it only what AP and FT need."""
    cells = {(cell.stage, cell.task): cell.seen for cell in plan_of(TASKS[:3]).cells}
    seen = {(stage, task): True for stage, tasks in enumerate(["a", "ab", "abc"], start=1) for task in tasks}
    ahead = {(0, "a"): False, (0, "b"): False, (0, "c"): False, (1, "b"): False, (2, "c"): False}
    assert cells == seen | ahead
    assert {(c.stage, c.task) for c in plan_of(TASKS[:3], eval={"forward": False}).cells} == set(seen)


def test_a_tree_of_choices_needs_each_shared_stage_once() -> None:
    """Three lambdas per task over five tasks: 3 + 9 + 27 + 81 + 243 stages of 243 sequences, not 1215."""
    keys: set[str] = set()
    for weights in itertools.product([0.1, 0.2, 0.3], repeat=5):
        keys |= set(stage_keys(plan_of(method={"name": "o_lora", "lambda2": list(weights)})))
    assert len(keys) == 363


def test_a_tree_over_a_weight_that_is_inert_at_first_needs_a_third() -> None:
    """lambda1 does nothing at stage 1: 1 + 3 + 9 + 27 + 81 stages."""
    keys: set[str] = set()
    for weights in itertools.product([0.1, 0.2, 0.3], repeat=5):
        keys |= set(stage_keys(plan_of(method={"name": "o_lora", "lambda1": list(weights)})))
    assert len(keys) == 1 + 3 + 9 + 27 + 81


def test_a_recipe_holds_no_path_and_no_host(tmp_path: Any) -> None:
    """Nothing of where a run happens is in what names its result."""
    spec_values = {"model": {"name": str(tmp_path)}, "data": {"source": str(tmp_path)}}
    text = str([stage.recipe for stage in plan_of(**spec_values).stages])
    assert str(tmp_path) not in text


def test_equal_numbers_in_another_form_are_the_same_stage() -> None:
    """1 and 1.0, or a list of equal values and the value itself, determine the same result."""
    plan = plan_of(method={"name": "o_lora", "alpha": 32, "lambda2": 1})
    other = plan_of(method={"name": "o_lora", "alpha": 32.0, "lambda2": [1.0] * 5}, train={"lr": [5e-4] * 5})
    assert shared(plan, other) == len(TASKS)
    assert isinstance(parse_number(plan), float)


def parse_number(plan: Plan) -> Any:
    """lambda2 as it stands in the first recipe."""
    return plan.stages[0].recipe["method"]["lambda2"]


def test_a_spec_of_another_run_is_not_needed_for_a_key() -> None:
    """Keys are pure functions: two calls agree."""
    assert plan_of() == plan_of()
    assert isinstance(parse({"order": "x", "tasks": ["a"], "method": {"name": "o_lora"}}, method_params), RunSpec)


def key_of(recipe: dict[str, Any]) -> str:
    """A content key, reckoned without raycl: SHA-256 of the sorted JSON without white space."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


TRAIN = {
    "lr": 0.0005,
    "epochs": 1,
    "batch_size": 8,
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "keep": "last",
}
LENGTHS = {"source": 512, "target": 50}


@pytest.mark.parametrize(
    ("method", "version", "live"),
    [("inc_lora", {}, {}), ("inf_lora", {"version": 2}, {"epsilon": 0.95, "energy_power": 1, "horizon": 15})],
)
def test_the_recipe_of_a_stage_in_full(method: str, version: dict[str, int], live: dict[str, Any]) -> None:
    """Every entry by hand, the version of a method's arithmetic from the second on; the key is the hash of exactly that."""
    designed = {"design": "svd", "layer_chunks": 1} if live else {}
    plan = plan_of(method={"name": method})
    parent = None
    for number, stage in enumerate(plan.stages, start=1):
        task = TASKS[number - 1]
        shape = {"name": method, "rank": 8, "alpha": 32.0, "dropout": 0.0, "targets": None}
        recipe = {
            "schema": 1,
            "model": {"fingerprint": MODEL, "precision": "bf16"},
            "task": {"name": task.name, "train": task.train_fingerprint},
            "lengths": LENGTHS,
            "method": {**shape, **designed, **live, **version},
            "train": TRAIN,
            "seed": 0,
            "stage": number,
            "parent": parent,
        }
        assert stage.recipe == recipe
        assert stage.key == key_of(recipe)
        parent = stage.key


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_changed_is_in_the_key_with_its_version(schedule: str) -> None:
    """Stages of the schedules that once ended a step early are not taken for those of today."""
    recipe = plan_of(train={"schedule": schedule}).stages[0].recipe
    assert recipe["train"] == TRAIN | {"schedule": {"value": schedule, "version": 2}}


@pytest.mark.parametrize("labels", [("yes", "no"), None])
def test_the_recipe_of_a_cell_in_full(labels: tuple[str, ...] | None) -> None:
    """The state, the test split, metric and labels, lengths, and every setting that generation obeys; the untrained model
    is named by its fingerprint and precision."""
    task = replace(toy("a"), labels=labels, metric="exact_match" if labels else "rouge_l")
    plan = plan_of([task], method={"name": "inc_lora"})
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    for cell, state in zip(plan.cells, (f"untrained {MODEL} bf16", plan.stages[0].key), strict=True):
        named = {"name": "a", "test": task.test_fingerprint, "metric": task.metric, "labels": list(labels or [])}
        recipe = {
            "schema": 1,
            "state": state,
            "task": named,
            "lengths": LENGTHS,
            "decoding": greedy | {"min_new_tokens": 0},
        }
        assert cell.key == key_of(recipe)


def test_what_a_task_of_ones_own_scores_with_is_in_its_cells_and_in_no_stage() -> None:
    """Further metrics, aliases and the source of functions: each makes other scores, and the stages are the same."""
    task = replace(toy("a"), labels=("yes", "no"), metric="exact_match")
    code = Code(None, "f" * 64)
    changes: list[dict[str, Any]] = [{"metrics": ("chrf",)}, {"aliases": ("ja",)}, {"code": {"m:f": code}}]
    changes.append({"code": {"m:f": replace(code, sha256="0" * 64)}})
    plans = [plan_of([replace(task, **change)], method={"name": "inc_lora"}) for change in ({}, *changes)]
    assert len({plan.stages[0].key for plan in plans}) == 1
    assert len({plan.cells[-1].key for plan in plans}) == 5
    elsewhere = plan_of([replace(task, code={"m:f": replace(code, folder="/x")})], method={"name": "inc_lora"})
    assert elsewhere.cells[-1].key == plans[3].cells[-1].key
