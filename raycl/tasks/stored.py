"""Long sequences of plain records: in memory while they are few, in a memory-mapped Arrow file where they are many.

A file is named by its content and lies in raycl's home, so that reading the same data again makes no second copy, and a
worker opens what the driver wrote. A cluster of several machines needs that home on a file system that all of them see.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, overload
from uuid import uuid4

from raycl.errors import DataError
from raycl.files import home

IN_MEMORY = 20_000
"""Records up to which a sequence stays in memory."""
AT_ONCE = 2_000
"""Records that are written and read together."""
LOOKS = 2_000
"""Records that are looked up in one mapping of a file: each may bring 64 KiB of it into memory, as Linux reads around."""
T = TypeVar("T")


def keep(records: Iterable[T], kind: type[T], lasting: bool = True) -> Sequence[T]:
    """All `records`, instances of the dataclass `kind`: as a tuple, or on disk if there are more than `IN_MEMORY`.

    What the fields hold must be texts, numbers, none, and tuples of these. A file that is not `lasting` is removed when
    nobody in this process refers to the sequence any more.
    """
    records = iter(records)
    first = list(itertools.islice(records, IN_MEMORY + 1))
    if len(first) <= IN_MEMORY:
        return tuple(first)
    return _write(_drained(first, records), kind, lasting)


def _drained(first: list[T], rest: Iterator[T]) -> Iterator[T]:
    """First one, then the other; what was given out is not held."""
    first.reverse()
    while first:
        yield first.pop()
    yield from rest


class Lazy(Sequence[T], Generic[T]):
    """A sequence that makes its items when they are asked for; a slice of it is one too."""

    @abstractmethod
    def _at(self, place: int) -> T:
        """The item at a place from 0 on."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        places = range(len(self))[index]
        return Picked(self, places) if isinstance(places, range) else self._at(places)


class Stored(Lazy[T]):
    """Records in an Arrow file. It travels to other processes as the path of its file."""

    def __init__(self, path: Path, kind: type[T], length: int) -> None:
        self.path = path
        self.kind = kind
        self.length = length
        self._mapped: Any = None
        self._looks = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        """From first to last, read in pieces that do not stay in memory."""
        import pyarrow as pa

        with pa.OSFile(str(self._there())) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield from map(self._made, batch.to_pylist())

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.path, self.kind, self.length)

    def _at(self, place: int) -> T:
        """From the file, mapped into memory; anew after so many looks, which lets go of the pages they read."""
        if self._looks % LOOKS == 0:
            from datasets import Dataset

            self._mapped = Dataset.from_file(str(self._there()))
        self._looks += 1
        return self._made(self._mapped[place])

    def _there(self) -> Path:
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: the rows that the run was planned with are not here; next step: set RAYCL_HOME to a folder "
                "that all machines of the cluster see"
            )
        return self.path

    def _made(self, row: dict[str, Any]) -> T:
        return self.kind(**{name: _tuples(value) for name, value in row.items()})


class Picked(Lazy[T]):
    """Some records of a sequence, in an order of their own; `make` turns each into what is wanted, when it is wanted."""

    def __init__(
        self, records: Sequence[Any], places: Sequence[int], make: Callable[[int, Any], T] | None = None
    ) -> None:
        self.records = records
        self.places = places
        self.make = make

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[T]:
        if isinstance(self.places, range) and self.places == range(len(self.records)):
            yield from map(self._made, self.places, self.records)  # from first to last, which a file is read best in
        else:
            yield from map(self._at, range(len(self.places)))

    def _at(self, place: int) -> T:
        place = self.places[place]
        return self._made(place, self.records[place])

    def _made(self, place: int, record: Any) -> T:
        return record if self.make is None else self.make(place, record)


class Joined(Lazy[T]):
    """Several sequences, one after another."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[T]:
        return itertools.chain(*self.parts)

    def _at(self, place: int) -> T:
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(place)


def held(records: Sequence[T]) -> Sequence[T]:
    """The records as a tuple where they are few, and else as they are."""
    return tuple(records) if len(records) <= IN_MEMORY else records


def _write(records: Iterable[T], kind: type[T], lasting: bool) -> Stored[T]:
    """Write records into a file named by what they hold, or by nothing if it is not to last."""
    import pyarrow as pa

    folder = home() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{uuid4().hex}.arrow"
    digest, length = hashlib.sha256(kind.__name__.encode()), 0
    names = _schema(kind).names
    values_of = attrgetter(*names)
    records = iter(records)
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, _schema(kind)) as writer:
            while piece := list(map(values_of, itertools.islice(records, AT_ONCE))):
                if lasting:
                    digest.update(repr(piece).encode("utf-8", "surrogatepass"))
                length += len(piece)
                rows = [dict(zip(names, values, strict=True)) for values in piece]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_schema(kind)))
        path = folder / (f"{digest.hexdigest()}.arrow" if lasting else f"passing-{uuid4().hex}.arrow")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    found = Stored(path, kind, length)
    if not lasting:
        weakref.finalize(found, path.unlink, missing_ok=True)
    return found


def _schema(kind: type) -> Any:
    """The Arrow types of a record's fields, by their annotations."""
    import pyarrow as pa

    types = {
        "str": pa.large_string(),
        "float": pa.float64(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "int | None": pa.int64(),
        "tuple[int, ...]": pa.list_(pa.int32()),
        "tuple[int, int] | None": pa.list_(pa.int32()),
        "tuple[str, ...]": pa.list_(pa.large_string()),
        "Turns": pa.list_(pa.list_(pa.large_string())),
    }
    return pa.schema([(field.name, types[str(field.type)]) for field in fields(kind)])


def _tuples(value: Any) -> Any:
    """Lists as tuples, at every depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
