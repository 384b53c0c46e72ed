"""From a reproduction to run specs: at paper scale, and the same cut down to a smoke run. Nothing is downloaded here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from raycl.files import Json
from raycl.methods.registry import method_class, method_params
from raycl.presets import merge
from raycl.reproduction.form import MODELS, Column, Reproduction, Row, Scale
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec, parse
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.orders import CUSTOM

SHAPE = ("rank", "alpha", "dropout")
"""The method's fields that a protocol fixes for every row."""
SMOKE_STAGES = 2
SMOKE_METHODS: dict[str, Json] = {
    "lfpt5": {"length": 4, "attempts": 2, "tokens": 12, "words": 6},
    "sapt_lora": {"share": 0.3},
    "replay": {"share": 0.3},
    "ewc": {"fisher_examples": 4},
}
"""What would cost most at toy scale, or would come out as nothing of eight examples."""
SMOKE: Json = {
    "data": {"train_examples": 8, "test_examples": 4, "max_source_tokens": 48, "max_target_tokens": 6},
    "train": {"epochs": 1, "batch_size": 4, "micro_batch_size": None, "zero_stage": 0, "log_every": 1},
    "eval": {"batch_size": 8},
    "workers": 0,
    "preset": "smoke",
}


@dataclass(frozen=True)
class Place:
    """What the user's machine adds to a paper's settings."""

    scale: Scale = "smoke"
    data: str = "hub"
    """Data source; at smoke scale without a folder, the demo's data stand in for the orders' tasks."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Name in MODELS, or at smoke scale a family -> local folder or hub id."""
    workers: int | None = None


@dataclass(frozen=True)
class Sequence:
    """One sequence that a cell averages."""

    row: Row
    column: Column
    order: str
    seed: int
    spec: RunSpec


def sequences(one: Reproduction, place: Place, seeds: int | None = None) -> Iterator[Sequence]:
    """Every sequence of every cell; equal specs come more than once, since columns share orders."""
    count = 1 if place.scale == "smoke" or not one.trains else (seeds or one.seeds)
    for row in one.rows:
        for column in one.columns:
            for order in column.orders:
                for seed in range(count):
                    yield Sequence(row, column, order, seed, make_spec(one, row, column, order, seed, place))


def make_spec(one: Reproduction, row: Row, column: Column, order: str, seed: int, place: Place) -> RunSpec:
    """The run spec of one sequence at the place's scale: published settings, the table's protocol, the row's overrides."""
    model = MODELS[column.model]
    said = {
        "order": order,
        "model": {"name": place.models.get(column.model if place.scale == "paper" else model.family, model.hub)},
        "data": {"source": place.data},
        "eval": {"forward": False},  # FWT is in none of the tables
        "seed": seed,
        "workers": place.workers,
    }
    shared = {} if row.own or one.protocol is None else _protocol(one.protocol, row, model.family, order)
    spec = resolve("paper", [said, shared, row.settings], gpus=0, kind=model.family)
    return spec if place.scale == "paper" else _cut_down(spec, place.data)


def _protocol(name: str, row: Row, family: str, order: str) -> Json:
    """Optimisation, lengths and LoRA shape of a method's published settings, for a row of another method."""
    published = method_class(name).settings(family, order)
    fields = method_params(row.settings["method"]["name"]).model_fields
    shape = {key: published["method"][key] for key in SHAPE if key in fields}
    return {key: value for key, value in published.items() if key != "method"} | {"method": shape}


def _cut_down(spec: RunSpec, data: str) -> RunSpec:
    """The same with few examples and the first stages only; per-stage settings are cut to these."""
    values = spec.model_dump(mode="json")
    demo = data == "hub"
    tasks = list(open_catalogue().orders["demo"] if demo else spec.tasks)[:SMOKE_STAGES]
    for section, name in [("train", "lr"), *(("method", name) for name in spec.method.per_stage_fields())]:
        if isinstance(values[section][name], list):
            values[section][name] = values[section][name][: len(tasks)]
    small: Json = {
        "order": CUSTOM + ",".join(tasks),
        "tasks": tasks,
        "model": {"precision": "fp32"},
        "data": {"source": "demo" if demo else data},
        "method": SMOKE_METHODS.get(spec.method.name, {}),
    }
    return parse(merge(values, SMOKE, small), method_params)
