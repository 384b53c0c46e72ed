"""Data sets on the Hugging Face hub: the user's own, and the published tasks.

Of a published task, train is 1000 examples a class, drawn with the sampling seed, and test the labelled split, capped at
7600 examples. The published benchmark was made in this way, but its draw is not known: scores are close to it, not equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from raycl.errors import shown
from raycl.tasks.mapping import Mapper
from raycl.tasks.rows import HubUnreachable, RawTask, Split, collect, complaint, shorten
from raycl.tasks.sampling import draw, draw_per_class
from raycl.tasks.stream import Hub, HubTable, Published, TaskEntry
from raycl.tasks.tables import Rows, rows_of_dataset

TRAIN_PER_CLASS = 1000
TEST_CAP = 7600
OFFLINE = "use a local copy with `--data FOLDER` (or RAYCL_DATA), or run `--order demo`, which works offline"
_PARQUET = "refs/convert/parquet"

LoadDataset = Callable[..., Any]
"""Stands in for the function of that name in `datasets`: (id, config, split=..., revision=...)."""


def rows_of_hub(data: Hub, split: str, load_dataset: LoadDataset | None = None) -> Rows:
    """The rows of a split, memory-mapped. Raises HubUnreachable, and DataError for a data set that cannot be loaded."""
    name = data.splits()[split]
    table = _table(load_dataset or _default_loader(), data, name)
    return rows_of_dataset(table, f"hub data set {shown(data.hub)}, split {shown(name)}")


def load_hub(entry: TaskEntry, seed: int, load_dataset: LoadDataset | None = None) -> RawTask:
    """Read one published task from the hub; `seed` is the sampling seed.

    Raises DataError for a task that is not on the hub, for an unreachable hub (HubUnreachable) and for a table of another
    form than expected.
    """
    table = entry.data.hub if isinstance(entry.data, Published) else None
    if table is None:
        raise complaint(
            f"task {entry.name}",
            "is not offered on the hub",
            "the tasks of the long orders",
            "use `--data FOLDER` (or RAYCL_DATA)",
        )
    get = load_dataset or _default_loader()
    names = table.splits()
    train, test = _table(get, table, names["train"]), _table(get, table, names["test"])
    chosen = draw_per_class(_column(train, table), TRAIN_PER_CLASS, f"{seed}:{entry.name}:hub:train")
    # The test split keeps its natural shares, as in the published files: one class for all in the draw.
    kept = draw([0] * len(test), TEST_CAP, f"{seed}:{entry.name}:hub:test")
    details = {"hub": {"id": table.hub, "config": table.config, "test_split": table.test, "note": table.note}}
    labels = tuple(entry.labels) if entry.labels else None
    values = {str(value): label for value, label in table.labels.items()}
    parse = Mapper(table.input, (table.answer,), labels=tuple(table.labels.values()), values=values)
    return RawTask(
        "hub",
        "o_lora",
        labels,
        _rows(train, chosen, table, names["train"], parse),
        _rows(test, kept, table, names["test"], parse),
        details=details,
    )


def _default_loader() -> LoadDataset:
    """The real `load_dataset`; imported late because it is heavy."""
    from datasets import load_dataset

    return load_dataset


def _table(get: LoadDataset, data: Hub, split: str) -> Any:
    """One split of a data set. Raises DataError."""
    where = f"hub data set {shown(data.hub)}"
    try:
        return _fetch(get, data, split)
    except ConnectionError as error:
        cause = shorten(str(error), 200)
        other = OFFLINE if isinstance(data, HubTable) else "copy the data where there is one (`raycl data fetch`)"
        raise HubUnreachable(
            f"{where}: the hub cannot be reached ({cause}); next step: check the network, or {other}"
        ) from None
    except Exception as error:  # the hub's clients raise types of several libraries
        raise complaint(
            where,
            f"cannot be loaded ({type(error).__name__}: {shorten(str(error), 200)})",
            "a public data set, with its configuration and its splits as they are called there",
            OFFLINE if isinstance(data, HubTable) else "correct the id, `config`, `revision` or the name of the split",
        ) from None


def _fetch(get: LoadDataset, data: Hub, split: str) -> Any:
    """One split; a data set that is still a script is read from the hub's own conversion to Parquet."""
    pinned = {"revision": data.revision} if data.revision else {}
    try:
        return get(data.hub, data.config, split=split, **pinned)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        return get(data.hub, data.config, split=split, revision=_PARQUET)


def _column(data: Any, table: HubTable) -> list[Any]:
    """All label values of a split. Raises DataError if the column is missing."""
    try:
        return list(data[table.answer][:])
    except (KeyError, ValueError):  # ValueError since datasets 4
        raise complaint(
            f"hub data set {shown(table.hub)}",
            f"column {shown(table.answer)} is missing or of another type",
            "the columns raycl expects",
            OFFLINE,
        ) from None


def _rows(data: Any, indices: Iterable[int], table: HubTable, split: str, parse: Mapper) -> Split:
    """The chosen rows of a split, in the benchmark's form."""
    source = f"hub data set {shown(table.hub)}, split {shown(split)}"
    return collect(((f"{source}, row {index}", data[index]) for index in indices), parse, source)
