"""How the fields of spec models stand in keys: what is left out, what counts only where it is set, what differs by stage.

`raycl.spec` and `raycl.sections` declare the fields; nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from raycl.files import Json

PositiveInt = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class NotInKey:
    """Marks a field of a spec model that has no effect of its own on results, so that it is left out of every key.

    What carries no mark is in the keys: a new field can be left out only on purpose.
    """

    why: str


@dataclass(frozen=True)
class InKeyUnlessDefault:
    """Marks a field that is in the keys only where it differs from its default: older keys were made without it."""


@dataclass(frozen=True)
class Meaning:
    """Marks a field whose values mean something else since `version`, all but `except_for`; keys hold it with the value."""

    version: int
    except_for: Any

    def keyed(self, value: Any) -> Any:
        """The value as it stands in a key."""
        return value if value == self.except_for else {"value": value, "version": self.version}


@dataclass(frozen=True)
class PerStage:
    """Marks a field that takes one value, or a list with one value per stage."""


class Strict(BaseModel):
    """Base of every spec model: unknown fields are errors, numbers are finite, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    def keyed(self, stage: int) -> Json:
        """The fields that belong into the keys of `stage` (1-based), lists per stage reduced to that stage's value."""
        fields = type(self).model_fields
        return {
            name: _in_key(info, value, stage)
            for name, info in fields.items()
            if not self._left_out(name) and not isinstance(value := getattr(self, name), Strict)
        }

    def _left_out(self, name: str) -> bool:
        """Whether a field stays out of the keys as it is now."""
        info = type(self).model_fields[name]
        if _marked(info, NotInKey) or name in self.without_effect():
            return True
        is_default = getattr(self, name) == info.get_default(call_default_factory=True)
        return is_default and _marked(info, InKeyUnlessDefault)

    def without_effect(self) -> frozenset[str]:
        """The names of the fields that have no effect because of what other fields say."""
        return frozenset()


def _marked(info: FieldInfo, mark: type) -> bool:
    """Whether a field carries a mark."""
    return any(isinstance(one, mark) for one in info.metadata)


def per_stage_fields(model: type[Strict]) -> list[str]:
    """The names of a spec model's fields that are marked `PerStage`."""
    return [name for name, info in model.model_fields.items() if _marked(info, PerStage)]


def fields_at(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The fields of the spec model at a place in `model`: names of fields, and indices, which stand for nothing."""
    models = [model]
    for part in place:
        if isinstance(part, str):
            infos = [one.model_fields[part] for one in models if part in one.model_fields]
            models = [found for info in infos for found in _models_in(info.annotation)]
    return [name for one in models for name in one.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names: itself, the one in a list, those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _in_key(info: FieldInfo, value: Any, stage: int) -> Any:
    """A field's value as it stands in the keys of a stage."""
    value = at_stage(value, stage) if _marked(info, PerStage) else value
    meaning = next((mark for mark in info.metadata if isinstance(mark, Meaning)), None)
    return meaning.keyed(value) if meaning else value


def at_stage(value: Any, stage: int) -> Any:
    """The value of a per-stage setting at `stage` (1-based): a list holds one value per stage."""
    return value[stage - 1] if isinstance(value, (list, tuple)) else value
