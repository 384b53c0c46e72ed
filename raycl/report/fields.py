"""The list of run-spec fields with their meaning, made from the models that validate them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raycl.files import Json
from raycl.methods.registry import method_params
from raycl.spec import MethodParams, RunSpec

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
CONSTRAINED = re.compile(r"Annotated\[(\w+), FieldInfo\((.*?)\)\]\)?\]?")


def field_table(method: str, preset: str = "", values: Json | None = None) -> str:
    """Plain text: one line per field of the run spec, with `method`'s hyper-parameters in place of the method.

    `values` are the fields that the preset called `preset` sets, as a layer of a run spec; a field shows both. Raises
    ValueError for an unknown method.
    """
    lines = ["Fields of a run spec (use with --set FIELD=VALUE, or in a YAML file for --config)", ""]
    lines += _lines(RunSpec, "", method_params(method), _Preset(preset, values or {}))
    return "\n".join(lines)


@dataclass(frozen=True)
class _Preset:
    """A preset's values below some field."""

    name: str
    values: Json

    def below(self, field: str) -> _Preset:
        """What it sets inside a field."""
        return _Preset(self.name, self.values.get(field, {}))

    def words(self, field: str) -> str:
        """What it sets a field to; empty where it does not."""
        return f"; preset {self.name} {self.values[field]!r}" if field in self.values else ""


def _lines(model: type[BaseModel], prefix: str, method: type[MethodParams], preset: _Preset) -> list[str]:
    lines: list[str] = []
    for name, info in model.model_fields.items():
        kind: Any = method if info.annotation is MethodParams or name == "method" else info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += ["", f"{prefix}{name}:", *_lines(kind, f"{prefix}{name}.", method, preset.below(name))]
            continue
        default = "required" if info.is_required() else f"default {info.get_default(call_default_factory=True)!r}"
        allowed = f"{_kind(kind, info.metadata)}; {default}{preset.words(name)}"
        lines.append(f"  {prefix}{name:<24} {info.description or ''} [{allowed}]")
    return lines


def kind_of(info: FieldInfo) -> str:
    """A readable type of a field with its bounds."""
    return _kind(info.annotation, info.metadata)


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """A readable type with its bounds."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    bounds = "".join(
        f" {sign}{getattr(item, name)}" for item in metadata for name, sign in BOUNDS.items() if hasattr(item, name)
    )
    return CONSTRAINED.sub(_shorten, text.replace("typing.", "").replace("NoneType", "none")) + bounds


def _shorten(match: re.Match[str]) -> str:
    """`Annotated[int, FieldInfo(... Gt(gt=0) ...)]` as `int >0`."""
    found = {name: re.search(rf"{name}=([\d.]+)", match.group(2)) for name in BOUNDS}
    return match.group(1) + "".join(f" {BOUNDS[name]}{hit.group(1)}" for name, hit in found.items() if hit)
