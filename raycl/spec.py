"""The run spec: every setting of a sequence, validated, with units and ranges.

One pydantic model is the source of the command line, the YAML file, the stage key, the MLflow params and the error
messages. Nothing heavy is imported here. The hyper-parameters of a method live in the method's own file; they reach
`RunSpec.method` through a look-up passed as validation context (`parse`), so that this module knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from raycl.errors import SpecError, is_name, name_rule, one_message, problems, shown
from raycl.fields import NotInKey, PositiveInt, Strict, at_stage, fields_at, per_stage_fields
from raycl.files import Json
from raycl.sections import DataSpec, EvalSpec, ModelSpec, TrainSpec

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
LONGEST_NAME = 100
"""Characters of a task's name."""
FIELDS_HINT = "Run `raycl fields` to list every field with its meaning and allowed values."


@dataclass(frozen=True)
class Beside:
    """Passes through the model beside the plain one of a training step, over its rows; each by its length: 1 = that of the
    plain one."""

    read: tuple[float, ...] = ()
    """Forward only."""
    trained: tuple[float, ...] = ()
    """Forward and back."""


class MethodParams(Strict):
    """Base of every method's hyper-parameters.

    `at(stage)` is what enters the stage key. A subclass says in `inert` what has no effect at a stage, so that runs which
    differ only in that share the stage.
    """

    name: str = Field(description="name of the method, as `raycl methods` lists it, or package.module:Class")

    @final
    def at(self, stage: int, alone: bool = False) -> Json:
        """The hyper-parameters that determine stage `stage` (1-based), with lists reduced to that stage's value.

        Of a stage that stands `alone`, those that determine a first stage. As everywhere, a field that is marked
        `InKeyUnlessDefault` is left out at its default, which older keys stand for.
        """
        per_stage, inert = self.per_stage_fields(), self.inert(1 if alone else stage)
        acting = self.model_dump(mode="json") | self.in_force()
        return {
            name: at_stage(value, stage) if name in per_stage else value
            for name, value in acting.items()
            if name not in inert and not self._left_out(name)
        }

    def inert(self, stage: int) -> frozenset[str]:
        """The names of the fields that have no effect on the state after stage `stage` (1-based), given its parent's."""
        return frozenset()

    def adapts_modules(self) -> bool:
        """Whether the method puts branches on modules of the base model, which `targets` chooses."""
        return "targets" in type(self).model_fields and "targets" not in self.inert(1)

    def trains_matrices(self) -> bool:
        """Whether Muon may move the matrices of the method's branches: it has some, and leaves their gradients whole."""
        return self.adapts_modules()

    def passes_are_equal(self) -> bool:
        """Whether all workers take as many passes as each other in every step: where base weights lie in pieces (ZeRO 3), a
        worker that takes one more waits for the others for ever."""
        return True

    def writes_weights(self) -> bool:
        """Whether branches end up in the base model's own weights when it is served: then none may sit on a tied weight."""
        return False

    def reads_weights(self) -> bool:
        """Whether the method computes with the numbers of the base model's weights: then these may not be quantised."""
        return False

    def branch_rank(self, d_in: int, d_out: int) -> int:
        """Rank of what a stage trains on a module of these widths; 0 where the method has no branch."""
        return int(getattr(self, "rank", 0))

    def soft_tokens(self, stages: int) -> int:
        """How many positions soft prompts take in an input, at most, in a sequence of `stages`."""
        return 0

    def shows_answers(self) -> bool:
        """Whether a training pass reads a prompt after itself and its answer, so that inputs are about twice as long."""
        return False

    def beside(self, stage: int, answer: int) -> Beside:
        """What a step of a stage passes through the model beside its plain pass; `answer` = tokens of its longest answer.

        Passes over rows that are replayed are not in it, as these rows are not counted.
        """
        return Beside()

    def adapted_rows(self) -> int:
        """Training rows that pass through the served model forward and back before each answer."""
        return 0

    def in_force(self) -> Json:
        """The values that act where a field's own value stands for another one, as none for the paper's; by field."""
        return {}

    def serving(self) -> Json:
        """Hyper-parameters that act on the served model only: they are part of a score's key, and of no stage's."""
        return {}

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """The names of the fields that accept one value per stage."""
        return frozenset()


class RunSpec(Strict):
    """A sequence: one model, one order of tasks, one method, one seed."""

    order: Annotated[str, NotInKey("the tasks are in the keys")] = Field(
        description="id of a task order (std-1..3, long-4..6, sni-1..2, demo), or 1..6, or task,task,..."
    )
    tasks: Annotated[list[str], NotInKey("each task is in the keys of its stage and cells")] = Field(
        description="the tasks of the order, first to last", min_length=1
    )
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    method: SerializeAsAny[MethodParams]
    train: TrainSpec = TrainSpec()
    eval: EvalSpec = EvalSpec()
    seed: int = Field(default=0, ge=0, description="seed of initialisation, data order and dropout")
    workers: Annotated[int | None, NotInKey("the token mean does not depend on it")] = Field(
        default=None, ge=0, description="Ray Train workers; 0 = in this process; none = one per GPU, or one on CPU"
    )
    groups: Annotated[PositiveInt, NotInKey("who trains a stage is no part of it")] = Field(
        default=1,
        description="groups of workers that train at once, where stages depend on no other and the cluster has room",
    )
    imported: Annotated[dict[str, Sha256], NotInKey("the key of the stage that it makes holds it")] = Field(
        default_factory=dict,
        exclude_if=lambda keys: not keys,
        description="task: SHA-256 of an adapter trained elsewhere that is its stage; set by `raycl import-adapter`",
    )
    preset: Annotated[str, NotInKey("the fields that it set are in the keys")] = Field(
        default="none", description="the preset these values started from"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, MethodParams):
            return value
        look_up: Callable[[str], type[MethodParams]] | None = (info.context or {}).get("method_params")
        if look_up is None or not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("expected a mapping with the method's name, e.g. {name: o_lora, rank: 8}")
        return look_up(value["name"]).model_validate(value, context=info.context)

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("a task may stand only once in a sequence")
        if odd := [task for task in tasks if not is_name(task, LONGEST_NAME)]:
            raise ValueError(f"{shown(odd[0])} is no name of a task; allowed: {name_rule(LONGEST_NAME)}")
        return tasks

    def per_stage_problems(self) -> list[str]:
        """One line for each per-stage list whose length is not the number of stages."""
        fields = [(f"train.{name}", getattr(self.train, name)) for name in per_stage_fields(TrainSpec)]
        fields += [(f"method.{name}", getattr(self.method, name)) for name in sorted(self.method.per_stage_fields())]
        wanted = len(self.tasks)
        return [
            f"{name}: a list of {len(value)} values; allowed: one value, or {wanted} values (one per stage)"
            for name, value in fields
            if isinstance(value, (list, tuple)) and len(value) != wanted
        ]


def parse(values: Json, method_params: Callable[[str], type[MethodParams]]) -> RunSpec:
    """Validate a nested mapping into a `RunSpec`.

    `method_params` maps a method's name to its hyper-parameter model and raises ValueError for an unknown name.
    Raises SpecError that lists every problem at once.
    """
    try:
        spec = RunSpec.model_validate(values, context={"method_params": method_params})
    except ValidationError as error:
        lines = problems(error, known=lambda place: _fields_at(place, values, method_params))
        raise SpecError(one_message("the run spec", lines, FIELDS_HINT)) from None
    if uneven := spec.per_stage_problems():
        raise SpecError(one_message("the run spec", uneven, FIELDS_HINT))
    return spec


def _fields_at(place: Sequence[Any], values: Json, method_params: Callable[[str], type[MethodParams]]) -> Sequence[str]:
    """The fields that there are at a place of the run spec; below `method`, those of the method that `values` name."""
    above, rest = (place[0], place[1:]) if place else ("", [])
    if above != "method":
        return fields_at(RunSpec, place)
    try:
        return fields_at(method_params(values["method"]["name"]), rest)
    except (KeyError, TypeError, ValueError):
        return []
