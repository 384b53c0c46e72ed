"""The run spec: strict fields, all problems at once, per-stage lists, and only SpecError for whatever nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raycl.errors import SpecError
from raycl.fields import InKeyUnlessDefault, Meaning, NotInKey, at_stage
from raycl.methods.registry import METHODS, method_params
from raycl.report.fields import field_table
from raycl.sections import DataSpec
from raycl.spec import RunSpec, parse
from raycl.state.keys import content_key

ROOMS = {
    "": ["order", "tasks", "seed", "workers", "groups", "preset"],
    "model.": ["name", "revision", "precision", "dropout"],
    "data.": [
        "source",
        "stream",
        "allow_code",
        "train_examples",
        "test_examples",
        "seed",
        "reveal_task",
        "max_source_tokens",
    ],
    "train.": ["lr", "epochs", "batch_size", "micro_batch_size", "schedule", "warmup", "weight_decay", "max_grad_norm"],
    "eval.": ["batch_size", "forward"],
}
FIELDS = [room + name for room, names in ROOMS.items() for name in names]
FIELDS += [
    "data.test_split",
    "data.max_target_tokens",
    *(f"train.{name}" for name in ("holdout", "keep", "zero_stage", "engine")),
]
FIELDS += ["train.checkpoint_every", "train.log_every", "train.health", "train.patience", "imported"]
FIELDS += ["model.quantization", "model.attention", "model.gradient_checkpointing", "eval.workers", "train.batches"]
FIELDS += ["train.optimizer", "train.muon_scale", "train.compile"]
FIELDS += ["eval.batch_tokens"]
FIELDS += ["train.loss", "train.loss_top_k", "train.base_kl", "train.drift_rows"]
"""Every field but the method's. A field that is renamed or removed breaks users' files: change this list on purpose."""
BRANCH = {"name", "rank", "alpha", "dropout", "targets"}
SUBSPACE = {"design", "epsilon", "energy_power", "horizon", "layer_chunks", "tokens_per_dim"}
GATE = {"hidden", "score", "squash", "pooling", "input", "region", "epsilon", "energy_power", "chunks"}
METHOD_FIELDS = {
    "sin_lora": BRANCH,
    "inc_lora": BRANCH,
    "o_lora": BRANCH | {"lambda1", "lambda2"},
    "inf_lora": BRANCH | SUBSPACE,
    "gain_lora": BRANCH
    | SUBSPACE
    | {"lambda1", "lambda2", "over", "key_init", "init_constraint", "update_constraint", "detach_old"}
    | {f"gate_{name}" for name in GATE},
}


def spec_of(**changes: Any) -> RunSpec:
    """A valid spec of three tasks with some fields changed."""
    values = {"order": "custom", "tasks": ["a", "b", "c"], "method": {"name": "o_lora"}}
    return parse(values | changes, method_params)


def problems_of(**changes: Any) -> str:
    """The text of the SpecError that a change ends in."""
    with pytest.raises(SpecError) as caught:
        spec_of(**changes)
    return str(caught.value)


def names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The field names of a model and of those inside it."""
    found = []
    for name, info in model.model_fields.items():
        inner = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        found += names(info.annotation, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def test_the_field_names_are_those_users_rely_on() -> None:
    """No field appears, disappears or changes its name by accident."""
    assert sorted(name for name in names(RunSpec) if not name.startswith("method.")) == sorted(FIELDS)


@pytest.mark.parametrize("method", METHOD_FIELDS)
def test_the_method_fields_are_those_users_rely_on(method: str) -> None:
    """The same for the hyper-parameters of the methods that are in wide use."""
    assert set(method_params(method).model_fields) >= METHOD_FIELDS[method]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_field_says_what_it_means(method: str) -> None:
    """A description for every hyper-parameter."""
    assert all(info.description for info in method_params(method).model_fields.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_field_is_in_the_list_that_users_see(method: str) -> None:
    """`--fields` leaves nothing out."""
    table = field_table(method)
    for name in [*FIELDS, *(f"method.{field}" for field in method_params(method).model_fields)]:
        assert f"  {name} " in table


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": 1}, "colour"),
        ({"train": {"learning_rate": 1}}, "train.learning_rate"),
        ({"model": {"path": "x"}}, "model.path"),
        ({"data": {"folder": "x"}}, "data.folder"),
        ({"eval": {"beams": 4}}, "eval.beams"),
        ({"method": {"name": "sin_lora", "lambda1": 1}}, "lambda1"),
    ],
)
def test_an_unknown_field_is_an_error_that_names_it(changes: dict[str, Any], field: str) -> None:
    """Also a field that only another method has; the message says where to find the known ones."""
    text = problems_of(**changes)
    assert f"{field}: unknown field" in text
    assert "raycl fields" in text


def test_all_problems_are_reported_at_once_with_field_value_and_what_is_allowed() -> None:
    """One run shows every mistake."""
    text = problems_of(
        seed=-1,
        tasks=["a", "a"],
        train={"lr": 0, "batch_size": "many", "schedule": "step", "holdout": 0.9},
        model={"precision": "fp8"},
        method={"name": "o_lora", "rank": 0, "lambda1": -2},
        sede=3,
    )
    assert text.startswith("10 problems in the run spec:")
    assert text.count("\n  - ") == 10
    for field, value in [("seed", "-1"), ("train.batch_size", "'many'"), ("train.schedule", "'step'")]:
        assert f"{field}: " in text
        assert f"(got {value})" in text
    for word in ("train.lr", "'bf16' or 'fp32'", "'constant', 'linear' or 'cosine'", "method.rank", "only once", "0.5"):
        assert word in text
    assert "sede: unknown field" in text
    assert text.splitlines()[-1].startswith("Run `raycl fields`")


@pytest.mark.parametrize("method", [None, {}, "o_lora", {"rank": 8}, {"name": 3}])
def test_a_method_without_a_name_says_what_is_expected(method: Any) -> None:
    """The message shows the form of a method."""
    assert "name: o_lora" in problems_of(method=method)


def test_an_unknown_method_names_the_nearest_and_all_known() -> None:
    """A typing error is answered with a guess."""
    text = problems_of(method={"name": "olora"})
    assert "did you mean 'o_lora'?" in text
    assert all(name in text for name in METHODS)


def test_a_per_stage_list_must_have_one_value_per_stage() -> None:
    """All lists of a wrong length are reported together, with both lengths."""
    text = problems_of(
        train={"lr": [1e-3, 1e-4], "epochs": [1, 2, 3, 4]}, method={"name": "o_lora", "lambda1": [0.5], "lambda2": []}
    )
    for field, count in [("train.lr", 2), ("train.epochs", 4), ("method.lambda1", 1), ("method.lambda2", 0)]:
        assert f"{field}: a list of {count} values; allowed: one value, or 3 values (one per stage)" in text


def test_a_bad_value_of_a_per_stage_field_is_one_problem_at_its_place() -> None:
    """A field that takes a value or a list is judged by the form that was given."""
    assert "\n  - train.lr: Input should be greater than 0 (got 0)\n" in problems_of(train={"lr": 0})
    listed = problems_of(train={"lr": [1, -1, "x"]})
    assert "\n  - train.lr.1: Input should be greater than 0 (got -1)\n  - train.lr.2: " in listed
    for text in (
        problems_of(train={"lr": "x"}),
        problems_of(train={"lr": {}}),
        problems_of(train={"epochs": [1, 0, 1]}),
    ):
        assert text.startswith("1 problem in the run spec:")


def test_a_per_stage_list_gives_each_stage_its_value() -> None:
    """Lists are read by stage, single values hold for all stages."""
    spec = spec_of(train={"lr": [1e-3, 1e-4, 1e-5]}, method={"name": "o_lora", "lambda1": [0, 1, 2]})
    assert [at_stage(spec.train.lr, stage) for stage in (1, 2, 3)] == [1e-3, 1e-4, 1e-5]
    assert [spec.method.at(stage).get("lambda1") for stage in (1, 2, 3)] == [None, 1, 2]
    assert [at_stage(spec.train.epochs, stage) for stage in (1, 2, 3)] == [1, 1, 1]


def test_a_spec_survives_a_round_trip_through_json() -> None:
    """What is recorded beside a result can be run again as it is."""
    for method in METHODS:
        spec = spec_of(method={"name": method}, train={"lr": [1e-3, 1e-4, 1e-5]})
        assert parse(spec.model_dump(mode="json"), method_params) == spec


OPTIONS = {"quantization": "none", "attention": "auto", "gradient_checkpointing": False}


def test_a_streams_path_holds_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec that was written, such as a sweep's best, is read from other folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    assert DataSpec(stream="mine/s.yaml").stream == str(tmp_path / "mine/s.yaml")
    assert DataSpec(stream="~/s.yaml").stream == "/somewhere/s.yaml"
    assert DataSpec(stream=None).stream is None


def test_the_defaults() -> None:
    """What a run does that names nothing: everybody's stored stages and scores were made with these."""
    values = spec_of().model_dump(mode="json")
    assert {name: value for name, value in values.items() if name != "method"} == {
        "order": "custom",
        "tasks": ["a", "b", "c"],
        "seed": 0,
        "workers": None,
        "groups": 1,
        "preset": "none",
        "model": {"name": "packaged", "revision": None, "precision": "bf16", "dropout": 0.0} | OPTIONS,
        "data": {
            "source": "hub",
            "stream": None,
            "allow_code": False,
            "train_examples": None,
            "test_examples": None,
            "test_split": "test",
            "seed": 42,
            "reveal_task": False,
            "max_source_tokens": 512,
            "max_target_tokens": 50,
        },
        "train": {
            "lr": 5e-4,
            "epochs": 1,
            "batch_size": 8,
            "micro_batch_size": None,
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "holdout": 0.0,
            "keep": "last",
            "zero_stage": 0,
            "engine": "auto",
            "checkpoint_every": 0,
            "log_every": 5,
        },
        "eval": {"batch_size": 32, "forward": False},
    }


LIMITS: dict[str, tuple[list[Any], list[Any]]] = {
    "tasks": ([["a"]], [[]]),
    "seed": ([0], [-1]),
    "workers": ([0, None], [-1]),
    "groups": ([1, 8], [0]),
    "model.dropout": ([0, 0.99], [-0.1, 1]),
    "data.seed": ([0], [-1]),
    **{
        f"data.{name}": ([1], [0])
        for name in ("train_examples", "test_examples", "max_source_tokens", "max_target_tokens")
    },
    "train.lr": ([1e-9, 10], [0, 10.1]),
    **{f"train.{name}": ([1], [0]) for name in ("epochs", "batch_size", "micro_batch_size", "log_every")},
    "train.warmup": ([0, 0.99], [-0.1, 1]),
    "train.weight_decay": ([0, 7], [-0.1]),
    "train.max_grad_norm": ([0, 7], [-0.1]),
    "train.holdout": ([0, 0.5], [-0.1, 0.51]),
    "train.zero_stage": ([0, 1, 2, 3], [-1, 4]),
    "train.loss_top_k": ([2, 7], [1]),
    "train.drift_rows": ([0, 16], [-1]),
    "train.base_kl": ([0, 7], [-0.1]),
    "train.checkpoint_every": ([0, 9], [-1]),
    "train.patience": ([0, 9], [-1]),
    "eval.batch_size": ([1], [0]),
    "eval.batch_tokens": ([1, None], [0]),
    "eval.workers": ([0, 8], [-1]),
    "method.rank": ([1], [0]),
    "method.lambda1": ([0], [-0.1]),
}
"""Field -> the outermost values that are allowed, and the nearest that are not."""


@pytest.mark.parametrize("field", LIMITS)
def test_limits_of_a_field(field: str) -> None:
    """The last value on each side is allowed, the next one is refused, by name."""
    room, _, name = field.rpartition(".")
    base = {"name": "o_lora"} if room == "method" else {}
    for value in LIMITS[field][0]:
        spec_of(**({room: base | {name: value}} if room else {name: value}))
    for value in LIMITS[field][1]:
        assert f"{field}: " in problems_of(**({room: base | {name: value}} if room else {name: value}))


@pytest.mark.parametrize("method", METHODS)
def test_only_soft_prompts_take_room_in_an_input(method: str) -> None:
    """As many positions as the longest prompt of the sequence has."""
    room = {"prog_prompt": 30, "l2p": 15, "lfpt5": 300}
    assert spec_of(method={"name": method}).method.soft_tokens(3) == room.get(method, 0)


def test_a_spec_cannot_be_changed() -> None:
    """A validated spec stays what was validated."""
    spec = spec_of()
    with pytest.raises(ValueError):
        spec.seed = 3
    with pytest.raises(ValueError):
        spec.method.rank = 3


LEAVES = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=6)
KEYS = st.sampled_from([name.split(".")[-1] for name in FIELDS] + [name.split(".")[0] for name in FIELDS]) | st.text(
    max_size=5
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
METHOD_VALUES = st.fixed_dictionaries(
    {"name": st.sampled_from(list(METHODS)) | LEAVES},
    optional=dict.fromkeys(("rank", "alpha", "lambda1", "targets", "over", "gate_hidden", "horizon"), VALUES),
)


@settings(max_examples=400, deadline=None)
@given(values=st.dictionaries(KEYS, VALUES, max_size=6), method=METHOD_VALUES | VALUES)
def test_nonsense_is_a_spec_error_and_nothing_else(values: dict[str, Any], method: Any) -> None:
    """Whatever nested mapping comes in, the answer is a spec that has a content key, or a SpecError that lists problems."""
    try:
        spec = parse({"order": "x", "tasks": ["a"], **values, "method": method}, method_params)
    except SpecError as error:
        assert "\n  - " in str(error)
    else:
        assert content_key(spec.model_dump(mode="json"))


MARKED: dict[str, dict[type, str]] = {
    "run": {NotInKey: "order tasks workers groups imported preset"},
    "model": {
        NotInKey: "name revision",
        InKeyUnlessDefault: "dropout quantization attention gradient_checkpointing",
    },
    "data": {NotInKey: "source stream allow_code train_examples test_examples test_split seed reveal_task"},
    "train": {
        NotInKey: "micro_batch_size zero_stage engine checkpoint_every log_every drift_rows patience health",
        InKeyUnlessDefault: "batches optimizer muon_scale compile loss loss_top_k base_kl",
        Meaning: "schedule",
    },
    "eval": {NotInKey: "batch_size batch_tokens forward workers"},
}
"""By hand: what is not in the keys, what is there unless it has its default, and what has another meaning than once."""


@pytest.mark.parametrize("section", MARKED)
def test_the_marks_are_those_that_somebody_thought_of(section: str) -> None:
    """A mark that goes, comes or changes moves keys, or hides a change: it is changed here too, by hand."""
    spec = parse({"order": "demo", "tasks": ["a"], "method": {"name": "o_lora"}}, method_params)
    model = type(getattr(spec, section, spec))
    for kind in (NotInKey, InKeyUnlessDefault, Meaning):
        found = [name for name, info in model.model_fields.items() if any(type(one) is kind for one in info.metadata)]
        assert found == MARKED[section].get(kind, "").split()
