"""The errors a user can cause and mend, and the one wording of what a validation finds.

Entry points print a `UserError` as one message and exit with code 2. Knows no other module of raycl.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


SHOWN = 5
"""Names in one message; the rest is counted."""
QUOTED = 200
"""Characters of a value that a message quotes at most."""
LONGEST_WORD = 400
"""Characters without a space that a message holds at most: longer than any sound path, not what floods a terminal."""
MACHINE = {
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EROFS: "give a place that can be written",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOTDIR: "give a place that is no file",
    errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "give a place without links that go round",
}
"""What the operating system refuses for the user's reasons and not for a defect of raycl's, and the next step."""


_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b")


class UserError(Exception):
    """Something the user gave cannot be used.

    The text names the field or file, the value, what is allowed and the next step. Whatever is put into it, it is printable:
    control characters and those that change the direction of writing are escaped, words without an end are shortened, and
    passwords in URIs are left out.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(printable(redacted(part)) if isinstance(part, str) else part for part in parts))


class SpecError(UserError):
    """A run spec has one or more problems; the text lists all of them."""


class DataError(UserError):
    """Task data is missing, empty or malformed."""


class StoreError(UserError):
    """A stage store, or a file in it, cannot be read or trusted."""


class SetupError(UserError):
    """Something this machine needs is missing (a package's data file, a reachable hub)."""


class DivergedError(UserError):
    """A stage's numbers are none any more, or unsound where that ends a run (`train.health: fail`). All workers of a group
    find it at the same point, and a second try would too."""


def shown(value: Any, limit: int = QUOTED) -> str:
    """A value as a message quotes it: in Python's form, unprintable characters escaped, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def some(names: Iterable[str]) -> str:
    """The first few of several names, and how many there are more."""
    found = list(names)
    listed = ", ".join(found[:SHOWN])
    return listed if len(found) <= SHOWN else f"{listed} and {len(found) - SHOWN} more"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean 'batch_size'?)` for a word that is near to one of `words`; else nothing."""
    near = difflib.get_close_matches(word[:QUOTED], list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def has_password(uri: str) -> bool:
    """Whether a URI holds a password: `scheme://user:password@host`."""
    return _PASSWORD.search(uri) is not None


def redacted(text: str) -> str:
    """A text without the passwords of URIs and without tokens of well-known forms."""
    return _TOKEN.sub("***", _PASSWORD.sub("://***@", text))


def printable(text: str) -> str:
    """A text that a terminal shows as it is: line ends stay, other characters without a shape are escaped, and words of
    more than `LONGEST_WORD` characters lose their middle."""
    plain = "".join(one if one == "\n" or one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    half = LONGEST_WORD // 2
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:half]}...{word[0][-half:]}", plain)


def is_name(text: str, longest: int) -> bool:
    """Whether a text can be a name: plain printable characters without a slash, spaces only between others, not too long.

    Not characters without a shape: control characters, those that turn the direction of writing, joiners and fillers.
    """
    return (
        0 < len(text) <= longest
        and text.isprintable()
        and text == text.strip()
        and not re.search(
            r"[/\\\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]", text
        )
    )


def name_rule(longest: int) -> str:
    """What `is_name` allows, in words."""
    return f"1 to {longest} plain printable characters, without slashes and line ends"


def machine_problem(error: OSError) -> str | None:
    """What the operating system refused and the next step, where the user can mend it; none for any other error."""
    step = MACHINE.get(error.errno or 0)
    return step and f"{error.filename or 'the disk'}: {error.strerror}; next step: {step}"


class LostError(UserError):
    """A process of the cluster has died, which no result depends on: what is stored stays, and the same command goes on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def problems(
    error: ValidationError,
    named: Callable[[str], str] = lambda place: place,
    known: Callable[[Sequence[Any]], Iterable[str]] = lambda place: (),
) -> list[str]:
    """What pydantic found, one line `field: message (got value)` each, none twice.

    `named` turns a field's dotted place into what the user knows it by, such as a flag; `known` gives the fields that there
    are at a place, so that a misspelt one is told the nearest.
    """
    lines = [_line(problem, named, known) for problem in error.errors() if not _of_other_form(problem)]
    return list(dict.fromkeys(lines))


def one_message(head: str, lines: list[str], hint: str) -> str:
    """Several problems as one message: what they are about, a line each, the next step."""
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{count} in {head}:", *(f"  - {line}" for line in lines), hint])


def _line(problem: ErrorDetails, named: Callable[[str], str], known: Callable[[Sequence[Any]], Iterable[str]]) -> str:
    where = named(".".join(str(part) for part in problem["loc"] if not _is_form(part)) or "input")
    if problem["type"] == "extra_forbidden":
        *above, last = problem["loc"]
        return f"{where}: unknown field{did_you_mean(str(last), known(above))}"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem.get("input"), dict) else f" (got {shown(problem.get('input'))})"
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
