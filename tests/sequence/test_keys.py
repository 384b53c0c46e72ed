"""What is in a key: every field of every spec model, unless the field says that it has no effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from raycl.fields import InKeyUnlessDefault, Meaning, NotInKey, Strict
from raycl.methods.o_lora import OLoraParams
from raycl.methods.registry import METHODS, method_class, method_params
from raycl.presets import merge
from raycl.sections import DataSpec, EvalSpec, ModelSpec, TrainSpec
from raycl.sequence.plan import Plan, make_plan, state_keys
from raycl.spec import MethodParams, RunSpec, parse
from tests.kit.cases import CASES
from tests.kit.moved_keys import MOVED, MOVED_LATER, MOVED_SETTINGS
from tests.kit.places import ROOT
from tests.kit.planned import planned_task as toy

STAGES = 3
NAMES = ["a", "b", "c"]
SECTIONS: dict[str, type[Strict]] = {"model": ModelSpec, "data": DataSpec, "train": TrainSpec, "eval": EvalSpec}
BASE: dict[str, Any] = {
    "order": "custom",
    "tasks": NAMES,
    "model": {"precision": "bf16"},
    "method": {"name": "o_lora"},
    "train": {"keep": "best", "holdout": 0.1, "optimizer": "muon", "loss": "eaft"},
    "eval": {"forward": True},
}
"""A spec in which every field has an effect that can have one."""
CANDIDATES: list[Any] = [True, False, 1, 2, 3, 0.25, 0.3, "another", ["x"], [0.3, 0.7, 0.9], [2]]
VALUES: dict[str, Any] = {"seed": 3, "workers": 3, "groups": 3, "imported": {"another": "0" * 64}}
"""Other values of the run's own fields than a word."""


TASKS = [toy(name) for name in NAMES]


def plan_of(*changes: dict[str, Any]) -> Plan:
    """The plan of BASE with changes."""
    return make_plan(parse(merge(BASE, *changes), method_params), TASKS, "a" * 64)


def changed_from(plan: Plan, other: Plan) -> int | None:
    """The first stage whose key differs; none = no key differs. After it every key must differ."""
    same = [one.key == two.key for one, two in zip(plan.stages, other.stages, strict=True)]
    assert same == sorted(same, reverse=True)
    return None if all(same) else same.index(False) + 1


def scored(plan: Plan) -> dict[tuple[int, str], str]:
    """The keys of the cells."""
    return {(cell.stage, cell.task): cell.key for cell in plan.cells}


def another(model: type[Strict], values: dict[str, Any], name: str) -> Any:
    """A valid value of a field other than the one it has."""
    now = getattr(model.model_validate(values), name)
    options = [option for part in walk(model.model_fields[name].annotation) for option in get_args(part)]
    literals = [one for one in options if isinstance(one, str | int | float) and one != "auto"]
    for value in [*literals, *CANDIDATES]:
        try:
            found = getattr(model.model_validate(values | {name: value}), name)
        except ValidationError:
            continue
        if found != now:
            return value
    raise AssertionError(f"no other value found for {model.__name__}.{name}: add one to CANDIDATES")


def walk(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from walk(part)


def fields() -> Iterator[tuple[str, str, Any, bool]]:
    """Every field of the run spec but the method's: section, name, another value, whether it must be in the keys."""
    for section, model in SECTIONS.items():
        values = BASE.get(section, {})
        for name, info in model.model_fields.items():
            yield section, name, another(model, values, name), not marked(info)
    for name, info in RunSpec.model_fields.items():
        if name not in (*SECTIONS, "method", "tasks"):
            yield "", name, VALUES.get(name, "another"), not marked(info)


def marked(info: Any) -> bool:
    """Whether a field says that it is not in the keys."""
    return any(isinstance(one, NotInKey) for one in info.metadata)


FIELDS = list(fields())


@pytest.mark.parametrize(("section", "name", "value", "keyed"), FIELDS, ids=[f"{s}.{n}" for s, n, *_ in FIELDS])
def test_every_field_is_in_the_keys_unless_it_is_marked(section: str, name: str, value: Any, keyed: bool) -> None:
    """A marked field changes neither stages nor scores; any other changes every stage, or if it is of `eval` every score."""
    change = {section: {name: value}} if section else {name: value}
    plan, other = plan_of(), plan_of(change)
    if not keyed:
        assert changed_from(plan, other) is None
        first, second = scored(plan), scored(other)
        assert all(first[cell] == second[cell] for cell in first.keys() & second.keys())
    elif section != "eval":
        assert changed_from(plan, other) == 1
    else:
        assert not set(scored(plan).values()) & set(scored(other).values())


def test_the_untrained_model_is_named_by_what_acts_on_its_answers() -> None:
    """Of the model's settings all but those of training; at their defaults it has the name of older versions."""
    acting = {"precision": "fp32", "quantization": "8bit", "attention": "eager"}
    training = {"dropout": 0.1, "gradient_checkpointing": True}
    assert {*acting, *training, "name", "revision"} == set(ModelSpec.model_fields)
    rows = [{cell.key for cell in plan_of({"model": one}).cells_of(0)} for one in ({}, acting, *single(acting))]
    assert all(not one & other for place, one in enumerate(rows) for other in rows[:place])
    assert all({cell.key for cell in plan_of({"model": one}).cells_of(0)} == rows[0] for one in single(training))


def single(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Each of the values alone."""
    return [{name: value} for name, value in values.items()]


def test_a_new_field_is_in_the_keys_unless_somebody_says_otherwise() -> None:
    """The fault that this guards against: `beta2` was added to TrainSpec and no key knew of it."""

    class WithBeta(TrainSpec):
        beta2: float = Field(0.999, description="Adam's second decay")
        fused: Annotated[bool, NotInKey("the same numbers, sooner")] = Field(False, description="fused kernels")
        amsgrad: Annotated[bool, InKeyUnlessDefault()] = Field(False, description="AMSGrad")

    class Scored(EvalSpec):
        beams: int = Field(1, description="beams")

    spec = parse(BASE, method_params)

    def keys(train: TrainSpec, scoring: EvalSpec = spec.eval) -> tuple[list[str], list[str]]:
        plan = make_plan(spec.model_copy(update={"train": train, "eval": scoring}), TASKS, "a" * 64)
        return [stage.key for stage in plan.stages], list(scored(plan).values())

    plain = spec.train.model_dump()
    assert not set(keys(WithBeta(**plain))[0]) & set(keys(WithBeta(**plain, beta2=0.95))[0])
    assert keys(WithBeta(**plain)) == keys(WithBeta(**plain, fused=True))
    assert not set(keys(WithBeta(**plain))[0]) & set(keys(WithBeta(**plain, amsgrad=True))[0])
    assert "amsgrad" not in WithBeta(**plain).keyed(1) and WithBeta(**plain, amsgrad=True).keyed(1)["amsgrad"]

    class WithOption(OLoraParams):
        momentum: float = Field(0.0, description="momentum")
        nesterov: Annotated[bool, InKeyUnlessDefault()] = Field(False, description="Nesterov's form")

    def stages(**changes: Any) -> list[str]:
        method = WithOption(**spec.method.model_dump(), **changes)
        return [stage.key for stage in make_plan(spec.model_copy(update={"method": method}), TASKS, "a" * 64).stages]

    without = {"nesterov"} - WithOption(**spec.method.model_dump()).at(1).keys()
    assert without == {"nesterov"} and len({tuple(stages(**one)) for one in ({}, {"nesterov": False})}) == 1
    assert not set(stages()) & set(stages(nesterov=True)) and not set(stages()) & set(stages(momentum=0.9))
    beams = [keys(spec.train, Scored(forward=True, beams=number)) for number in (1, 4)]
    assert beams[0][0] == beams[1][0] and not set(beams[0][1]) & set(beams[1][1])


def method_fields() -> Iterator[tuple[str, str, Any]]:
    """Every hyper-parameter of every case: case, name, another value."""
    for case_name, case in CASES.items():
        model = method_params(case.params["name"])
        for name in model.model_fields:
            if name != "name":
                yield case_name, name, another(model, case.params, name)


METHOD_FIELDS = list(method_fields())


@pytest.mark.parametrize(("case", "name", "value"), METHOD_FIELDS, ids=[f"{c}.{n}" for c, n, _ in METHOD_FIELDS])
def test_a_hyper_parameter_changes_the_stages_where_it_is_live(case: str, name: str, value: Any) -> None:
    """From the first stage on where either value is not inert; one that acts on the served model changes the scores."""
    before = {"method": CASES[case].params}
    after = {"method": CASES[case].params | {name: value}}
    first, second = (parse(merge(BASE, one), method_params).method for one in (before, after))
    live = [stage for stage in range(1, STAGES + 1) if name not in first.inert(stage) & second.inert(stage)]
    plans = plan_of(before), plan_of(after)
    same_at = all(first.at(stage) == second.at(stage) for stage in live)
    assert changed_from(*plans) == (None if same_at else live[0])
    if first.serving() != second.serving():
        assert not {key for (row, _), key in scored(plans[0]).items() if row} & set(scored(plans[1]).values())


def test_every_method_has_its_fields_looked_at() -> None:
    """No method is left out above, and every hyper-parameter has an effect somewhere."""
    without = {name for name in METHODS if set(method_params(name).model_fields) == {"name"}}
    assert {CASES[case].params["name"] for case, *_ in METHOD_FIELDS} == set(METHODS) - without
    acting = set()
    for case, name, value in METHOD_FIELDS:
        params = CASES[case].params
        first, second = (method_params(params["name"]).model_validate(one) for one in (params, params | {name: value}))
        if effects(first) != effects(second):
            acting.add((params["name"], name))
    assert {(CASES[case].params["name"], name) for case, name, _ in METHOD_FIELDS} == acting


def effects(params: MethodParams) -> list[Any]:
    """All that keys hold of a method's hyper-parameters."""
    return [params.serving(), *(params.at(stage) for stage in range(1, STAGES + 1))]


@given(
    st.lists(st.sampled_from([field for field in FIELDS if field[:2] != ("train", "keep")]), unique_by=lambda f: f[:2])
)
def test_several_changes_change_a_key_if_one_of_them_does(chosen: list[tuple[str, str, Any, bool]]) -> None:
    """Whatever is changed together: stages change if and only if an unmarked field of model, data, train or the run does."""
    changes = [{section: {name: value}} if section else {name: value} for section, name, value, _ in chosen]
    expected = any(keyed and section != "eval" for section, _, _, keyed in chosen)
    assert (changed_from(plan_of(), plan_of(*changes)) == 1) == expected


def test_the_keys_of_older_versions_stand() -> None:
    """Every case of every method and many settings have the stage keys that version 0.1 gave them, but for what stands in
    MOVED and MOVED_SETTINGS, of which no stage is taken for one of the old arithmetic. No score is taken for
    one that obeyed a checkpoint."""
    known = json.loads((ROOT / "tests" / "fixtures" / "keys-0.1.json").read_text())
    plain = {"keep": "last", "holdout": 0.0, "optimizer": "adamw", "loss": "cross_entropy"}
    base = {"model": {"precision": "bf16"}, "eval": {"forward": True}, "train": plain}
    found = {}
    for name, case in CASES.items():
        found[f"case {name}"] = keys_of(plan_of(base, {"method": case.params}))
    for name, changes in VARIATIONS.items():
        found[f"o_lora, {name}"] = keys_of(plan_of(base, changes))
    moved = {f"case {name}" for name, case in CASES.items() if case.params["name"] in MOVED}
    moved |= {f"o_lora, {name}" for name in MOVED_SETTINGS}
    later = {f"case {name}" for name, case in CASES.items() if case.params["name"] in MOVED_LATER}
    stages = {name: found[name]["stages"] for name in known}
    for name in later & known.keys():
        same = [one == other for one, other in zip(stages.pop(name), known.pop(name)["stages"], strict=True)]
        assert same == [True] + [False] * (len(same) - 1)
    assert {name: stages[name] for name in known.keys() - moved} == {
        name: known[name]["stages"] for name in known.keys() - moved
    }
    for name in known:
        assert name not in moved or not set(stages[name]) & set(known[name]["stages"])
        assert not set(found[name]["cells"]) & set(known[name]["cells"])


def test_what_has_moved_has_a_version_that_says_so() -> None:
    """The list of moved methods is that of the methods whose version was raised."""
    assert set(MOVED) == {name for name in METHODS if method_class(name).version > 1}


def keys_of(plan: Plan) -> dict[str, list[str]]:
    """The keys of a plan as the fixture holds them."""
    return {"stages": [stage.key for stage in plan.stages], "cells": [cell.key for cell in plan.cells]}


VARIATIONS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 3},
    "fp32": {"model": {"precision": "fp32"}},
    "model dropout": {"model": {"dropout": 0.1}},
    "lengths": {"data": {"max_source_tokens": 100, "max_target_tokens": 7}},
    "lr by stage": {"train": {"lr": [1e-3, 2e-3, 1e-4]}},
    "epochs by stage": {"train": {"epochs": [1, 2, 3]}},
    "batch": {"train": {"batch_size": 16, "micro_batch_size": 4}},
    "schedule": {"train": {"schedule": "linear", "warmup": 0.1}},
    "decay": {"train": {"weight_decay": 0.01, "max_grad_norm": 0.5}},
    "best": {"train": {"keep": "best", "holdout": 0.1}},
    "holdout without best": {"train": {"holdout": 0.1}},
    "zero": {"train": {"zero_stage": 2, "checkpoint_every": 0, "log_every": 7}},
    "eval": {"eval": {"forward": False, "batch_size": 3}},
    "draw": {"data": {"train_examples": 9, "seed": 1}},
    "workers": {"workers": 2},
}
"""What the fixture was made with, beside the cases."""


def test_an_adapter_from_elsewhere_names_its_stage_and_nothing_else() -> None:
    """What it is is in the key of the task's stage, and in no earlier one; what only trains is not, since nothing trains."""
    plain, one, other = plan_of(), plan_of({"imported": {"b": "1" * 64}}), plan_of({"imported": {"b": "2" * 64}})
    assert changed_from(plain, one) == changed_from(one, other) == 2
    assert one.stages[1].recipe["imported"] == "1" * 64 and "train" not in one.stages[1].recipe
    assert "imported" not in one.stages[2].recipe
    rates = {"train": {"lr": [5e-4, 0.3, 5e-4]}}
    assert plan_of({"imported": {"b": "1" * 64}}, rates).stages[1].key == one.stages[1].key
    assert changed_from(plain, plan_of(rates)) == 2


def test_settings_of_methods_that_are_in_keys_unless_they_have_their_default() -> None:
    """By hand, as above: those that came after their methods. No other setting of a method is left out of a key."""
    found = {
        (method, name, type(one))
        for method in METHODS
        for name, info in method_params(method).model_fields.items()
        for one in info.metadata
        if isinstance(one, InKeyUnlessDefault | NotInKey | Meaning)
    }
    late = [("am_lora", "zero_logit"), ("route_lora", "families"), ("route_lora", "family_below")]
    late += [("inf_lora", "tokens_per_dim"), ("gain_lora", "tokens_per_dim")]
    late += [("replay", "answers"), ("replay", "candidates")]
    assert found == {(method, name, InKeyUnlessDefault) for method, name in late}


@pytest.mark.parametrize(("method", "parts"), [("o_lora", ["c"]), ("per_task", ["c"]), ("route_lora", ["a", "b", "c"])])
def test_stages_that_make_up_a_state(method: str, parts: list[str]) -> None:
    """The last one holds all; but parts that stand alone serve together, unless the task's name chooses one of them."""
    spec = parse(merge(BASE, {"method": {"name": method}}), method_params)
    assert state_keys(spec, ["b", "a", "c"]) == tuple(parts)
