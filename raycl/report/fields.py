"""The list of run-spec fields with their meaning, made from the models that validate them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from raycl.methods.registry import method_params
from raycl.spec import MethodParams, RunSpec


def field_table(method: str) -> str:
    """Plain text: one line per field of the run spec, with `method`'s hyper-parameters in place of the method.

    Raises ValueError for an unknown method.
    """
    lines = ["Fields of a run spec (use with --set FIELD=VALUE, or in a YAML file for --config)", ""]
    lines += _lines(RunSpec, "", method_params(method))
    return "\n".join(lines)


def _lines(model: type[BaseModel], prefix: str, method: type[MethodParams]) -> list[str]:
    lines: list[str] = []
    for name, info in model.model_fields.items():
        kind: Any = method if info.annotation is MethodParams or name == "method" else info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += ["", f"{prefix}{name}:", *_lines(kind, f"{prefix}{name}.", method)]
            continue
        default = "required" if info.is_required() else f"default {info.get_default(call_default_factory=True)!r}"
        lines.append(f"  {prefix}{name:<24} {info.description or ''} [{_kind(kind, info.metadata)}; {default}]")
    return lines


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """A readable type with its bounds."""
    text = str(annotation) if not isinstance(annotation, type) else annotation.__name__
    text = text.replace("typing.", "").replace("NoneType", "none")
    bounds = [f"{sign}{getattr(item, attribute)}" for item in metadata for attribute, sign in _BOUNDS if hasattr(item, attribute)]
    return " ".join([_plain(text), *bounds])


_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def _plain(text: str) -> str:
    """Annotated[int, FieldInfo(...Gt(gt=0)...)] as `int >0`."""
    import re

    bound = {"Gt(gt=": " >", "Ge(ge=": " >=", "Le(le=": " <=", "Lt(lt=": " <"}

    def shorten(match: re.Match[str]) -> str:
        inner = match.group(2)
        parts = [sign + found.group(1) for mark, sign in bound.items() if (found := re.search(re.escape(mark) + r"([\d.]+)", inner))]
        return match.group(1) + "".join(parts)

    return re.sub(r"Annotated\[(\w+), FieldInfo\((.*?)\)\]\)?\]?", shorten, text)
