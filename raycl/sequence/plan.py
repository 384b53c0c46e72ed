"""The plan of a sequence: which stages and cells of scores make it up, and what names them in the store.

Everything is computed from the spec, the tasks' fingerprints and the model's fingerprint: no tensor, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raycl.files import Json
from raycl.methods.registry import identity, method_class
from raycl.sections import ModelSpec
from raycl.spec import RunSpec
from raycl.state.keys import SCHEMA, content_key
from raycl.tasks.task import Task, union
from raycl.train.decoding import GREEDY


@dataclass(frozen=True)
class StagePlan:
    """One stage to be: its key and the recipe behind it."""

    stage: int
    task: str
    key: str
    parent: str | None
    """Key of the stage it goes on from; none for a first stage, and for one that depends on no other."""
    recipe: Json
    row: int
    """Row of the accuracy matrix that is scored after it: the stage, or the last row for a joint stage."""


@dataclass(frozen=True)
class Cell:
    """One cell a[t][i] of the accuracy matrix."""

    stage: int
    """0 = the untrained model."""
    task: str
    key: str
    seen: bool
    """Whether the task had been trained by then."""
    state: tuple[str, ...]
    """Keys of the stages whose parts are scored, each with the chain behind it; empty = the untrained model."""


@dataclass(frozen=True)
class Plan:
    """A whole sequence."""

    stages: list[StagePlan]
    cells: list[Cell]
    own: list[Cell] = field(default_factory=list)
    """Where a method routes between stages that depend on no other: each task with its own stage alone, in the row of that
    stage. They score what routing without a mistake would, and are no cells of the matrix."""

    def cells_of(self, row: int) -> list[Cell]:
        """The cells of one row of the matrix."""
        return [cell for cell in self.cells if cell.stage == row]

    def to_score(self, row: int) -> list[Cell]:
        """What is scored for one row: first the stage's task alone, whose answers the row takes over, then its cells."""
        cells = self.cells_of(row)
        keys = {cell.key for cell in cells}
        return [*(cell for cell in self.own if cell.stage == row and cell.key not in keys), *cells]


def make_plan(spec: RunSpec, tasks: list[Task], model_fingerprint: str) -> Plan:
    """Chain the stage keys, and name the cells: all tasks seen, and with `eval.forward` the untrained row and each next
    task before its stage."""
    if spec.model.precision == "auto":
        raise ValueError("model.precision is still 'auto': resolve the run spec before its stages are named")
    method = method_class(spec.method.name)
    alone = method.alone(spec.method)
    stages: list[StagePlan] = []
    for number, task in enumerate(stage_tasks(spec, tasks), start=1):
        parent = stages[-1].key if stages and not alone else None
        recipe = stage_recipe(spec, number, task, model_fingerprint, parent)
        row = len(tasks) if method.joint else number
        stages.append(StagePlan(number, task.name, content_key(recipe), parent, recipe, row))

    def cell(row: int, task: Task, seen: bool, state: tuple[str, ...]) -> Cell:
        named = _name(state) or _untrained(spec.model, model_fingerprint)
        return Cell(row, task.name, content_key(cell_recipe(spec, task, named)), seen, state)

    cells = []
    for row in [*([0] if spec.eval.forward else []), *(stage.row for stage in stages)]:
        last = len(tasks) if row == 0 else min(len(tasks), row + spec.eval.forward)
        for index, task in enumerate(tasks[:last], start=1):
            # With the task id at hand, a task is scored with the state it left behind itself.
            at = min(row, index) if method.needs_task_id else row
            state = _state(stages, at, together=alone and not method.needs_task_id)
            cells.append(cell(row, task, index <= row, state))
    own = zip(stages, tasks, strict=False) if alone and method.chooses else ()
    return Plan(stages, cells, [cell(stage.row, task, True, (stage.key,)) for stage, task in own])


def _state(stages: list[StagePlan], row: int, together: bool) -> tuple[str, ...]:
    """What makes up the state after a row: its stage's chain, or, of stages that depend on no other, all up to it.

    Those stand in the order of their keys, so that the same tasks make the same state in whatever order they came.
    """
    if together:
        return tuple(sorted(stage.key for stage in stages if stage.row <= row))
    return tuple(stage.key for stage in stages if stage.row == row)


def _untrained(model: ModelSpec, model_fingerprint: str) -> str:
    """What names the untrained model in the keys of its scores: its files, and what acts on more than training."""
    acting = {
        name: value for name, value in model.keyed(1).items() if name not in ("dropout", "gradient_checkpointing")
    }
    precision = acting.pop("precision")
    return " ".join(["untrained", model_fingerprint, precision, *(f"{name}={acting[name]}" for name in sorted(acting))])


def state_keys(spec: RunSpec, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages, of those of a sequence, that make up the state after the last one; see `Cell.state`."""
    method = method_class(spec.method.name)
    together = method.alone(spec.method) and not method.needs_task_id
    return tuple(sorted(stages)) if together else tuple(stages[-1:])


def _name(state: tuple[str, ...]) -> str:
    """What names a state in the keys of its scores; empty for the untrained model."""
    return content_key({"parts": list(state)}) if len(state) > 1 else "".join(state)


def stage_tasks(spec: RunSpec, tasks: list[Task]) -> list[Task]:
    """What each stage trains on: one task after another, or for a joint method all of them in one stage."""
    return [union(tasks)] if method_class(spec.method.name).joint else tasks


def stage_recipe(spec: RunSpec, stage: int, task: Task, model_fingerprint: str, parent: str | None) -> Json:
    """All that determines the state after `stage`, and nothing else: no world size, no path, no logging.

    A stage that depends on no other is named as a first stage: its place has no effect but through settings per stage.
    """
    alone = method_class(spec.method.name).alone(spec.method)
    imported = spec.imported.get(task.name)
    # Nothing of the training acts on an adapter that was trained elsewhere; what it is does.
    made = {"train": spec.train.keyed(stage)} if imported is None else {"imported": imported}
    return {
        "schema": SCHEMA,
        "model": {"fingerprint": model_fingerprint, **spec.model.keyed(stage)},
        "task": {"name": task.name, "train": task.train_fingerprint},
        "lengths": _lengths(spec, stage),
        "method": _method_recipe(spec, stage, alone),
        **made,
        **spec.keyed(stage),
        "stage": 1 if alone else stage,
        "parent": parent,
    }


def _method_recipe(spec: RunSpec, stage: int, alone: bool) -> Json:
    """The live hyper-parameters, the version of the method's arithmetic once it is not the first, and what names a method
    from outside of raycl: where its class is and the hash of its source."""
    name = spec.method.name
    version = method_class(name).version
    return spec.method.at(stage, alone) | ({"version": version} if version > 1 else {}) | identity(name)


def cell_recipe(spec: RunSpec, task: Task, state: str) -> Json:
    """All that determines a cell's score: the state, the test split and how answers are generated."""
    acting = {"serving": spec.method.serving(), "eval": spec.eval.keyed(1)}
    return {
        **{name: settings for name, settings in acting.items() if settings},
        "schema": SCHEMA,
        "state": state,
        "task": {
            "name": task.name,
            "test": task.test_fingerprint,
            "metric": task.metric,
            "labels": list(task.labels or []),
            **_further(task),
        },
        "lengths": _lengths(spec, 1),
        "decoding": GREEDY,
    }


def _further(task: Task) -> Json:
    """What only tasks of a stream of one's own have: further metrics, aliases of labels, the source of functions."""
    code = {metric: code.sha256 for metric, code in task.code.items()}
    found: Json = {"metrics": list(task.metrics), "aliases": list(task.aliases), "code": code}
    return {name: value for name, value in found.items() if value}


def _lengths(spec: RunSpec, stage: int) -> Json:
    """The data settings that the examples' fingerprints do not cover: `max_source_tokens` as `source`, and so on."""
    keyed = spec.data.keyed(stage)
    return {name.removeprefix("max_").removesuffix("_tokens"): value for name, value in keyed.items()}
