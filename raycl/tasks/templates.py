"""Templates over one row: Jinja in its sandbox, without loaders and assignments, with few filters and methods.

So what a template writes is bounded by the row and by its own length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes, pass_eval_context
from jinja2.filters import do_replace, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 4_000_000
"""Characters that one rendered text may have, turns of its loops that write none counted."""
TOO_LONG = f"the text is longer than {LONGEST:,} characters, or the template's loops turn as often without writing any"
FILTERS = frozenset(
    [
        "capitalize",
        "default",
        "first",
        "float",
        "int",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "reject",
        "replace",
        "reverse",
        "round",
        "select",
        "sort",
        "string",
        "title",
        "trim",
        "truncate",
        "unique",
        "upper",
        "wordcount",
    ]
)
"""Filters of Jinja that look at nothing but their arguments and make nothing long of something short."""
METHODS = frozenset(
    [
        "capitalize",
        "endswith",
        "get",
        "items",
        "keys",
        "lower",
        "lstrip",
        "removeprefix",
        "removesuffix",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
        "values",
    ]
)
"""Methods of texts, lists and mappings of which the same holds."""
FORBIDDEN = (
    nodes.Assign,
    nodes.AssignBlock,
    nodes.CallBlock,
    nodes.Extends,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.Macro,
    nodes.With,
)
"""Statements that could make a text grow, or read something else than the row."""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which nothing grows beyond the row: a text times a number is no text."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products and remainders of numbers only, and no powers."""
        if operator == "**" or not all(isinstance(side, (int, float)) for side in (left, right)):
            raise TemplateError(f"`{operator}` is for numbers only, and `**` is not there")
        return super().call_binop(context, operator, left, right)


def as_text(value: Any) -> Any:
    """A value of a table as text: numbers and truth values as Python writes them; no number as none; all else as it is."""
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _written(value: Any) -> Any:
    """What a template writes of a value: the same as a column's text, of none nothing."""
    text = as_text(value)
    return "" if text is None else text


@functools.lru_cache(maxsize=1)
def _environment() -> _Environment:
    """The one environment: an absent value is an error, and none is an empty text."""
    made = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_written)
    made.filters = {name: how for name, how in made.filters.items() if name in FILTERS}
    made.filters |= {"join": _join, "replace": _replace}
    made.globals = {}
    return made


@pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], between: str = "", attribute: Any = None) -> str:
    """Jinja's filter, unless what it makes is longer than a text may be."""
    items = list(value if attribute is None else map(make_attrgetter(context.environment, attribute), value))
    _require_short(sum(len(str(item)) for item in items) + len(str(between)) * len(items))
    return str(between).join(map(str, items))


@pass_eval_context
def _replace(context: nodes.EvalContext, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Jinja's filter, unless what it makes is longer than a text may be."""
    _require_short(len(str(text)) + len(str(new)) * str(text).count(str(old)))
    return do_replace(context, str(text), str(old), str(new), count)


def _require_short(size: int) -> None:
    if size > LONGEST:
        raise ValueError(TOO_LONG)


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> Template:
    """The template, in which every turn of a loop gives a piece of text, so that `render` can count them."""
    tree = _environment().parse(text)
    for loop in tree.find_all(nodes.For):
        loop.body.append(nodes.Output([nodes.TemplateData("")]))
    return _environment().from_string(tree)


def check_template(text: str) -> str:
    """`text` if it is a template that may be used. Raises ValueError that says what is wrong with it."""
    try:
        tree = _environment().parse(text)
        _compiled(text)
    except TemplateError as error:
        raise ValueError(f"the template {text[:60]!r} is not valid: {error}") from None
    if found := next(tree.find_all(FORBIDDEN), None):
        raise ValueError(
            f"the template {text[:60]!r} has a statement that is not allowed here ({type(found).__name__.lower()})"
        )
    if any(name.name == "self" for name in tree.find_all(nodes.Name)):
        raise ValueError(f"the template {text[:60]!r} uses `self`, which is a word of Jinja's; write row['self']")
    for call in tree.find_all(nodes.Call):
        name = call.node.attr if isinstance(call.node, nodes.Getattr) else "?"
        if name not in METHODS:
            raise ValueError(f"the template {text[:60]!r} calls {name}(); allowed: {', '.join(sorted(METHODS))}")
    return text


def render(text: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of `values`. Raises ValueError for a value that is not there or a text too long."""
    parts: list[str] = []
    size = 0
    try:
        for part in _compiled(text).generate({str(name): value for name, value in values.items()}):
            size += len(part) or 1
            _require_short(size)
            parts.append(part)
    except (TemplateError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{error}") from None
    return "".join(parts)
