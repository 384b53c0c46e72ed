"""Reading JSON and JSON-lines files: bytes, hash, text, values. Every failure is a DataError that names the file."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl.errors import DataError
from raycl.reading import read_bytes, unpack
from raycl.tasks.rows import checked_text, complaint, shorten

_RESTORE = "restore the file from its source"


@dataclass(frozen=True)
class Lines:
    """The rows of JSON lines, each with its place."""

    rows: list[tuple[str, Any]]


class Reader:
    """Reads the files of one task below `root` and remembers their hashes.

    `hashes` maps each file read, relative to `root`, to the SHA-256 of its bytes as stored (compressed or not).
    `read_as` maps each file that is not of the form that its name says to the form that it was read as.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}
        self.read_as: dict[str, str] = {}

    def name(self, path: Path) -> str:
        """The path relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def text(self, path: Path) -> str:
        """The file's text; a name ending in `.gz` is decompressed. Raises DataError."""
        try:
            data = read_bytes(path)
        except OSError as error:
            raise complaint(str(path), f"cannot be read ({error.strerror})", "a readable file", _RESTORE) from None
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        self.hashes[self.name(path)] = hashlib.sha256(data).hexdigest()
        try:
            return (unpack(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        except (OSError, EOFError, zlib.error):
            raise complaint(str(path), "is damaged", "a complete gzip file", _RESTORE) from None
        except UnicodeDecodeError as error:
            raise complaint(
                str(path), f"byte {error.start} is not UTF-8", "UTF-8 text", "save the file as UTF-8"
            ) from None
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None

    def json(self, path: Path) -> Any:
        """The value in a JSON file. Raises DataError."""
        return parse_json(self.text(path), str(path))

    def content(self, path: Path) -> Any:
        """What a file of rows holds, whatever its name ends in: `Lines`, or the one JSON value in it. Raises DataError.

        More than one value makes JSON lines; a file named so is one JSON value only where it opens as a list.
        """
        value, other = content_of(self.text(path), str(path), ".jsonl" in path.suffixes)
        if other:
            self.read_as[self.name(path)] = other
        return value

    def labels(self, path: Path) -> tuple[str, ...]:
        """The label set in a `labels.json`: a list of at least two different texts. Raises DataError."""
        value = self.json(path)
        if not isinstance(value, list) or len(value) < 2:
            raise complaint(str(path), f"got {shorten(value)}", "a JSON list of two or more labels", _RESTORE)
        labels = tuple(checked_text(label, f"{path}, index {index}") for index, label in enumerate(value))
        if len(set(labels)) != len(labels):
            raise complaint(str(path), "a label stands twice", "different labels", "remove the repeated label")
        return labels


def content_of(text: str, where: str, named_lines: bool) -> tuple[Any, str]:
    """What a text of rows holds, `Lines` or one JSON value; and the form that it was read as, if its name says another.

    `named_lines` = the name says JSON lines. Raises DataError that names the place below `where`.
    """
    if named_lines and not text.lstrip().startswith("["):
        return _lines(text, where), ""
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        several = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if named_lines or several:
            return _lines(text, where), "" if named_lines else "JSON lines"
        return parse_json(text, where), ""
    return value, "one JSON list" if named_lines else ""


def _lines(text: str, path: str) -> Lines:
    """Each line that is not blank, with its place. Raises DataError at the first one that is not JSON."""
    # Not splitlines(): JSON texts may hold U+2028 and other characters that Python takes for line ends.
    numbered = ((f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1))
    return Lines([(where, parse_json(line, where)) for where, line in numbered if line.strip()])


def parse_json(text: str, where: str) -> Any:
    """The JSON value in `text`. Raises DataError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise complaint(where, "nested too deeply", "rows of plain texts", _RESTORE) from None
    except ValueError as error:  # also raised for an integer with thousands of digits
        raise complaint(where, f"not JSON ({error})", "one JSON value", _RESTORE) from None
