"""The plan of a sequence: which stages and cells of scores make it up, and what names them in the store.

Everything is computed from the spec, the tasks' fingerprints and the model's fingerprint: no tensor, no Ray.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from raycl.spec import RunSpec, at_stage
from raycl.state.keys import SCHEMA, content_key
from raycl.tasks.task import Task

Json = dict[str, Any]


@dataclass(frozen=True)
class StagePlan:
    """One stage to be: its key and the recipe behind it."""

    stage: int
    task: str
    key: str
    parent: str | None
    recipe: Json


@dataclass(frozen=True)
class Cell:
    """One cell a[t][i] of the accuracy matrix."""

    stage: int
    """0 = the untrained model."""
    task: str
    key: str
    seen: bool
    """Whether the task had been trained by then."""


@dataclass(frozen=True)
class Plan:
    """A whole sequence."""

    stages: list[StagePlan]
    cells: list[Cell]

    def cells_of(self, stage: int) -> list[Cell]:
        """The cells to be scored after a stage."""
        return [cell for cell in self.cells if cell.stage == stage]

    def to_json(self) -> Json:
        """Plain data, for the workers."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Json) -> Plan:
        """The inverse of `to_json`."""
        return cls([StagePlan(**stage) for stage in values["stages"]], [Cell(**cell) for cell in values["cells"]])


def make_plan(spec: RunSpec, tasks: list[Task], model_fingerprint: str) -> Plan:
    """Chain the stage keys, and name the cells: all tasks seen, and with `eval.forward` the untrained row and each next
    task before its stage."""
    stages: list[StagePlan] = []
    for number, task in enumerate(tasks, start=1):
        parent = stages[-1].key if stages else None
        recipe = stage_recipe(spec, number, task, model_fingerprint, parent)
        stages.append(StagePlan(number, task.name, content_key(recipe), parent, recipe))
    cells = []
    for stage in range(0 if spec.eval.forward else 1, len(tasks) + 1):
        state = stages[stage - 1].key if stage else f"untrained {model_fingerprint} {spec.model.precision}"
        last = len(tasks) if stage == 0 else min(len(tasks), stage + spec.eval.forward)
        for index, task in enumerate(tasks[:last], start=1):
            cells.append(Cell(stage, task.name, content_key(cell_recipe(spec, task, state)), index <= stage))
    return Plan(stages, cells)


def stage_recipe(spec: RunSpec, stage: int, task: Task, model_fingerprint: str, parent: str | None) -> Json:
    """All that determines the state after `stage`, and nothing else: no world size, no path, no logging."""
    model: Json = {"fingerprint": model_fingerprint, "precision": spec.model.precision}
    if spec.model.dropout:
        model["dropout"] = spec.model.dropout
    return {
        "schema": SCHEMA,
        "model": model,
        "task": {"name": task.name, "train": task.train_fingerprint},
        "lengths": _lengths(spec),
        "method": spec.method.at(stage),
        "train": train_recipe(spec, stage),
        "seed": spec.seed,
        "stage": stage,
        "parent": parent,
    }


def train_recipe(spec: RunSpec, stage: int) -> Json:
    """The optimisation settings that are live at `stage`; a held-out share only counts if it selects something."""
    train = spec.train
    recipe: Json = {name: at_stage(getattr(train, name), stage) for name in ("lr", "epochs")}
    for name in ("batch_size", "schedule", "warmup", "weight_decay", "max_grad_norm", "keep"):
        recipe[name] = getattr(train, name)
    if train.keep == "best":
        recipe["holdout"] = train.holdout
    return recipe


def cell_recipe(spec: RunSpec, task: Task, state: str) -> Json:
    """All that determines a cell's score: the state, the test split and how answers are generated."""
    return {
        "schema": SCHEMA,
        "state": state,
        "task": {
            "name": task.name,
            "test": task.test_fingerprint,
            "metric": task.metric,
            "labels": list(task.labels or []),
        },
        "lengths": _lengths(spec),
        "decoding": "greedy",
    }


def _lengths(spec: RunSpec) -> Json:
    return {"source": spec.data.max_source_tokens, "target": spec.data.max_target_tokens}
