"""Rows of the user's tables, one after another: CSV, TSV, JSON, JSON lines, Parquet, Arrow, folders of `datasets`.

A row is a mapping of columns. Nothing but JSON files, whose form asks for it, is held as a whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec

from raycl.errors import DataError, first_line, shown
from raycl.reading import RATIO, TEXT, TooLarge, limit_of, too_large, unpacked_limit
from raycl.tasks.files import Lines, content_of, parse_json
from raycl.tasks.rows import complaint, gather
from raycl.tasks.stream import Files, Format, Saved

Rows = Iterator[tuple[str, Any]]
"""(place, row) pairs."""
ENDINGS: dict[str, Format] = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"},
}
PACKED = {".gz", ".bz2", ".xz", ".zst"}
"""Endings of compressed files, which fsspec opens."""
AT_ONCE = 1000
"""Rows of a Parquet file that are read together."""
_RESTORE = "restore the file from its source, or say its `format` in the stream's file"


def rows_of_files(data: Files, split: str) -> Rows:
    """The rows of all files of a split, in the order of their names. Raises DataError that names file and line."""
    for path in _matching(data.splits()[split]):
        yield from _READERS[_format(data, path)](path, data)


def hashes_of(data: Files) -> dict[str, str]:
    """SHA-256 of every file, by its path. Raises DataError."""
    found = {}
    for paths in data.splits().values():
        for path in _matching(paths):
            with _opened(path, packed=False) as file:
                found[path] = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    return found


def rows_of_saved(data: Saved, split: str) -> Rows:
    """The rows of a split that `datasets` saved; memory-mapped. Raises DataError."""
    from datasets import Dataset, DatasetDict, load_from_disk

    name = data.splits()[split]
    try:
        found = load_from_disk(data.saved)
    except Exception as error:  # the loader raises types of several libraries
        raise complaint(
            data.saved, f"cannot be read ({first_line(error)[:200]})", "a folder that `save_to_disk` wrote", _RESTORE
        ) from None
    if isinstance(found, DatasetDict):
        if name not in found:
            raise complaint(
                data.saved, f"has no split {shown(name)}", ", ".join(map(str, found)), "correct the split's name"
            )
        found = found[name]
    elif set(data.splits().values()) != {"train"}:
        raise complaint(
            data.saved, "holds one table without splits", "`{saved: folder}` with `split: {test: 0.2}`",
            "leave the names of splits out, or save a DatasetDict",
        )  # fmt: skip
    assert isinstance(found, Dataset)
    return rows_of_dataset(found, f"{data.saved}, {name}")


def rows_of_dataset(table: Any, source: str) -> Rows:
    """The rows of a data set of `datasets`; a column of classes holds their names."""
    classes = {name: kind for name, kind in table.features.items() if hasattr(kind, "int2str")}
    for index, row in enumerate(table):
        named = {
            name: kind.int2str(row[name])
            for name, kind in classes.items()
            if isinstance(row[name], int) and row[name] >= 0
        }
        yield f"{source}, row {index}", row | named


def _matching(patterns: list[str]) -> list[str]:
    """The files that paths and globs name, each once, sorted within each glob; URIs stay as they are.

    Raises DataError with all that name none.
    """
    found = gather([partial(_matches, pattern) for pattern in patterns])
    return list(dict.fromkeys(path for paths in found for path in paths))


def _matches(pattern: str) -> list[str]:
    """The files that a path or a glob names. Raises DataError for none, and for a place that cannot be looked at."""
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        globbed = any(mark in path for mark in "*?[") and not system.exists(path)
        several = [one for one in (sorted(system.glob(path)) if globbed else [path]) if system.isfile(one)]
        named = [system.unstrip_protocol(one) if "://" in pattern else one for one in several]
    except Exception as error:  # every file system raises its own
        allowed = "a path, or a URI that fsspec knows"
        step = "correct it, or install what the message asks for"
        raise complaint(pattern, f"cannot be looked at ({first_line(error)[:200]})", allowed, step) from None
    if not named:
        raise complaint(pattern, "there is no such file", "a file, or a glob that matches some", "correct the path")
    return named


def _format(data: Files, path: str) -> Format:
    """What the stream or the file's name says. Raises DataError where neither does."""
    pure = PurePosixPath(path)
    ending = PurePosixPath(pure.stem).suffix if pure.suffix in PACKED else pure.suffix
    found = data.format or ENDINGS.get(ending.lower())
    if found is None:
        raise complaint(
            path, f"the ending {shown(ending)} says no format", ", ".join(ENDINGS), "set `format` in the data's mapping"
        )
    return found


def _opened(path: str, packed: bool = True) -> IO[bytes]:
    """A file to read bytes from. Raises DataError."""
    try:
        opened: Any = fsspec.open(path, "rb", compression="infer" if packed else None)
        return opened.open()
    except (OSError, ImportError, ValueError) as error:
        raise complaint(path, f"cannot be opened ({first_line(error)})", "a readable file", _RESTORE) from None


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file with their ends. Raises DataError for bytes that are no UTF-8, and for a damaged archive."""
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        number, held = 0, 0
        try:
            longest, most = limit_of(TEXT), _most(path)
            while line := text.readline(longest + 1):
                number += 1
                held += len(line)
                if len(line) > longest:
                    raise too_large(TEXT, f"line {number} is")
                if held > most:
                    raise too_large(TEXT, f"unpacks to more than {RATIO} times its size, and is")
                yield line
        except UnicodeDecodeError as error:
            where = f"{path}, line {number + 1} or a later one"
            raise complaint(where, f"not UTF-8 ({error.reason})", "UTF-8 text", "save the file as UTF-8") from None
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise complaint(path, f"is damaged ({first_line(error)})", "a complete file", _RESTORE) from None


def _most(path: str) -> float:
    """Characters that a file may hold in all: of a compressed one so many times its size, of any other what it holds."""
    if PurePosixPath(path).suffix not in PACKED:
        return math.inf
    system, place = fsspec.core.url_to_fs(path)
    return unpacked_limit(int(system.info(place)["size"] or 0))


def _whole(path: str) -> str:
    """A text file as a whole. Raises DataError for one beyond the limit."""
    longest, held, lines = limit_of(TEXT), 0, []
    for line in _lines(path):
        held += len(line)
        if held > longest:
            raise DataError(f"{path}: {too_large(TEXT)}")
        lines.append(line)
    return "".join(lines)


def _separated(path: str, data: Files, default: str) -> Rows:
    """CSV with a header line; every value is a text, as it stands there."""
    csv.field_size_limit(limit_of(TEXT))
    reader = csv.reader(_lines(path), delimiter=data.delimiter or default, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise complaint(path, "is empty", "a header line and rows", _RESTORE)
        if not header or len(set(header)) != len(header):
            raise complaint(
                f"{path}, line 1", f"the header is {shown(header)}", "different names, one per column", _RESTORE
            )
        for values in reader:
            if not values:
                continue  # a blank line
            where = f"{path}, line {reader.line_num}"
            if len(values) != len(header):
                raise complaint(
                    where, f"{len(values)} fields", f"{len(header)}, as the header has",
                    "quote fields that hold the delimiter or a line end, or set `delimiter`",
                )  # fmt: skip
            yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise complaint(
            f"{path}, line {reader.line_num}", f"not CSV ({error})", "fields in CSV's form", _RESTORE
        ) from None


def _json_lines(path: str, data: Files) -> Rows:
    """One JSON value per line that is not blank. A file that opens as a list is read as one list."""
    for number, line in enumerate(_lines(path), start=1):
        if number == 1 and line.lstrip().startswith("["):
            yield from _json_list(path, data)
            return
        if line.strip():
            yield (where := f"{path}, line {number}"), parse_json(line, where)


def _json_list(path: str, data: Files) -> Rows:
    """A JSON list of rows, an object with one list of them, or JSON lines under this name."""
    value, _ = content_of(_whole(path), path, named_lines=False)
    if isinstance(value, Lines):
        return iter(value.rows)
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise complaint(path, "holds no list of rows", "a JSON list, or an object with one list", _RESTORE)
    return ((f"{path}, index {index}", item) for index, item in enumerate(value))


def _columnar(path: str, form: str, batches_of: Callable[[Any], Iterator[Any]]) -> Rows:
    """The rows of a file of columns; `batches_of` gives its record batches. Raises DataError for a file of another form."""
    import pyarrow as pa

    with _opened(path, packed=False) as file:
        try:
            rows = (row for batch in batches_of(file) for row in _bounded(batch).to_pylist())
            yield from ((f"{path}, row {index}", row) for index, row in enumerate(rows))
        except TooLarge as error:
            raise DataError(f"{path}: {error}") from None
        except (OSError, pa.ArrowException) as error:
            why = first_line(error)[:150]
            raise complaint(path, f"is no {form} file ({why})", f"{form} in a whole file", _RESTORE) from None


def _bounded(batch: Any) -> Any:
    """Rows that are read together. Raises TooLarge where they would fill the memory."""
    if batch.nbytes > limit_of(TEXT):
        raise too_large(TEXT, f"{batch.num_rows} of its rows are")
    return batch


def _parquet_batches(file: IO[bytes]) -> Iterator[Any]:
    """Raises TooLarge for columns that unpack to very much more than they take in the file."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    for group in range(table.metadata.num_row_groups):
        for place in range(table.metadata.num_columns):
            column = table.metadata.row_group(group).column(place)
            if column.total_uncompressed_size > unpacked_limit(column.total_compressed_size):
                name = table.metadata.schema.column(place).name
                raise too_large(TEXT, f"column {shown(name)} unpacks to something")
    return table.iter_batches(AT_ONCE)


def _arrow_batches(file: IO[bytes]) -> Iterator[Any]:
    """Of Arrow's stream form, which `datasets` writes, and of its file form (Feather)."""
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic != b"ARROW1":
        return iter(pa.ipc.open_stream(file))
    reader: Any = pa.ipc.open_file(file)
    return (reader.get_batch(place) for place in range(reader.num_record_batches))


_READERS: dict[Format, Callable[[str, Files], Rows]] = {
    "csv": lambda path, data: _separated(path, data, ","),
    "tsv": lambda path, data: _separated(path, data, "\t"),
    "json": _json_list,
    "jsonl": _json_lines,
    "parquet": lambda path, data: _columnar(path, "Parquet", _parquet_batches),
    "arrow": lambda path, data: _columnar(path, "Arrow", _arrow_batches),
}
