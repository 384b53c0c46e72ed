"""Reading JSON and JSON-lines files: bytes, hash, text, values. Every failure is a DataError that names the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from raycl.errors import DataError
from raycl.tasks.rows import checked_text, complaint, shorten

_RESTORE = "restore the file from its source"


class Reader:
    """Reads the files of one task below `root` and remembers their hashes.

    `hashes` maps each file read, relative to `root`, to the SHA-256 of its bytes as stored (compressed or not).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}

    def name(self, path: Path) -> str:
        """The path relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def text(self, path: Path) -> str:
        """The file's text; a name ending in `.gz` is decompressed. Raises DataError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise complaint(str(path), f"cannot be read ({error.strerror})", "a readable file", _RESTORE) from None
        self.hashes[self.name(path)] = hashlib.sha256(data).hexdigest()
        try:
            return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        except (OSError, EOFError, zlib.error):
            raise complaint(str(path), "is damaged", "a complete gzip file", _RESTORE) from None
        except UnicodeDecodeError as error:
            raise complaint(
                str(path), f"byte {error.start} is not UTF-8", "UTF-8 text", "save the file as UTF-8"
            ) from None

    def json(self, path: Path) -> Any:
        """The value in a JSON file. Raises DataError."""
        return _parse(self.text(path), str(path))

    def json_lines(self, path: Path) -> list[tuple[str, Any]]:
        """(place, value) of each line that is not blank. Raises DataError at the first line that is not JSON."""
        # Not splitlines(): JSON texts may hold U+2028 and other characters that Python takes for line ends.
        lines = enumerate(self.text(path).split("\n"), start=1)
        return [
            (f"{path}, line {number}", _parse(line, f"{path}, line {number}")) for number, line in lines if line.strip()
        ]

    def labels(self, path: Path) -> tuple[str, ...]:
        """The label set in a `labels.json`: a list of at least two different texts. Raises DataError."""
        value = self.json(path)
        if not isinstance(value, list) or len(value) < 2:
            raise complaint(str(path), f"got {shorten(value)}", "a JSON list of two or more labels", _RESTORE)
        labels = tuple(checked_text(label, f"{path}, index {index}") for index, label in enumerate(value))
        if len(set(labels)) != len(labels):
            raise complaint(str(path), "a label stands twice", "different labels", "remove the repeated label")
        return labels


def _parse(text: str, where: str) -> Any:
    """The JSON value in `text`. Raises DataError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise complaint(where, "nested too deeply", "rows of plain texts", _RESTORE) from None
    except ValueError as error:  # also raised for an integer with thousands of digits
        raise complaint(where, f"not JSON ({error})", "one JSON value", _RESTORE) from None


def check_folder(source: str) -> Path:
    """The data folder a spec names. Raises DataError if there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    raise DataError(
        f"data.source: {source!r} is not a folder; allowed: `demo`, `hub`, or a folder in the O-LoRA, the GainLoRA or "
        "the JSONL benchmark layout; next step: correct `--data` (or RAYCL_DATA), or try `--order demo`"
    )
