"""The errors a user can cause and mend, and the one wording of what a validation finds.

Entry points print a `UserError` as one message and exit with code 2. Knows no other module of raycl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class UserError(Exception):
    """Something the user gave cannot be used.

    The text names the field or file, the value, what is allowed and the next step.
    """


class SpecError(UserError):
    """A run spec has one or more problems; the text lists all of them."""


class DataError(UserError):
    """Task data is missing, empty or malformed."""


class StoreError(UserError):
    """A stage store, or a file in it, cannot be read or trusted."""


class SetupError(UserError):
    """Something this machine needs is missing (a package's data file, a reachable hub)."""


class DivergedError(UserError):
    """The loss is no number any more. All workers of a group find it at the same step, and a second try would too."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def problems(error: ValidationError, named: Callable[[str], str] = lambda place: place) -> list[str]:
    """What pydantic found, one line `field: message (got value)` each, none twice.

    `named` turns a field's dotted place into what the user knows it by, such as a flag.
    """
    lines = [_line(problem, named) for problem in error.errors() if not _of_other_form(problem)]
    return list(dict.fromkeys(lines))


def one_message(head: str, lines: list[str], hint: str) -> str:
    """Several problems as one message: what they are about, a line each, the next step."""
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{count} in {head}:", *(f"  - {line}" for line in lines), hint])


def _line(problem: ErrorDetails, named: Callable[[str], str]) -> str:
    where = named(".".join(str(part) for part in problem["loc"] if not _is_form(part)) or "input")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem.get("input"), dict) else f" (got {problem.get('input')!r})"
    return f"{where}: {message}{got}"


def _is_form(part: Any) -> bool:
    """Whether a part of a problem's place is a form of a per-stage field (one value, or a list) and not a field's name."""
    return isinstance(part, str) and part.startswith(("constrained-", "list["))


def _of_other_form(problem: ErrorDetails) -> bool:
    """Whether a problem only says that a list is no single value, or the other way round."""
    form = str(problem["loc"][-1]) if problem["loc"] else ""
    if form.startswith("list["):
        return problem["type"] == "list_type"
    return form.startswith("constrained-") and isinstance(problem.get("input"), list)
