"""What a stream sets for single tasks of an order, as settings per stage of the run spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raycl.errors import SpecError, one_message, shown
from raycl.fields import at_stage, per_stage_fields
from raycl.files import Json, dotted
from raycl.methods.registry import method_params
from raycl.sections import TrainSpec
from raycl.tasks.catalogue import open_catalogue

HINT = "Other fields hold for a whole run: set them in --config or with --set."


def task_layer(values: Json, base: Json, stream: str | None, tasks: Sequence[str]) -> Json:
    """A layer of run-spec fields with one value per stage, from the `run:` of the stream's tasks; {} if none has any.

    A task that says nothing has the value of `base`, or the field's default. `values` say which method it is. What the
    user says for the whole run lies above this layer. Raises SpecError for fields that may not differ by stage.
    """
    entries = open_catalogue(stream).tasks
    said = [dotted(entries[name].run) for name in tasks]
    if not any(said):
        return {}
    allowed = _allowed(values)
    lines = [
        f"task {shown(name)}: run: {field} may not differ by stage; allowed: {', '.join(allowed)}"
        for name, fields in zip(tasks, said, strict=True)
        for field in fields
        if field not in allowed
    ]
    if lines:
        raise SpecError(one_message("the stream", lines, HINT))
    layer: Json = {}
    for field in dict.fromkeys(name for fields in said for name in fields):
        section, _, name = field.partition(".")
        usual = base.get(section, {}).get(name, allowed[field]())
        column = [fields.get(field, at_stage(usual, stage)) for stage, fields in enumerate(said, start=1)]
        layer.setdefault(section, {})[name] = column
    return layer


def _allowed(values: Json) -> dict[str, Callable[[], Any]]:
    """The fields that take one value per stage, with what gives their default."""
    train = {f"train.{name}": TrainSpec.model_fields[name] for name in per_stage_fields(TrainSpec)}
    try:
        params = method_params(values["method"]["name"])
    except (ValueError, KeyError, TypeError):
        return {name: info.get_default for name, info in train.items()}  # validation of the spec reports the method
    method = {f"method.{name}": params.model_fields[name] for name in sorted(params.per_stage_fields())}
    return {name: info.get_default for name, info in (train | method).items()}
