"""Tasks of one's own: the rows of their tables, read once, mapped and parted. They are in memory only if they are few."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from raycl.errors import DataError
from raycl.tasks.hub import rows_of_hub
from raycl.tasks.mapping import mapper_of
from raycl.tasks.rows import RawTask, Row, Skip, Split, collect, complaint, gather
from raycl.tasks.stored import Picked, held
from raycl.tasks.stream import Files, Hub, Saved, TaskEntry
from raycl.tasks.stream import Split as Shares
from raycl.tasks.tables import Rows, hashes_of, rows_of_files, rows_of_saved
from raycl.tasks.templates import as_text

SIDES = ("train", "test", "validation")


def load_own(entry: TaskEntry) -> RawTask:
    """Read one task of a user's stream. Raises DataError with the problems of all its splits."""
    data = entry.data
    assert isinstance(data, Files | Hub | Saved), entry.name
    named = [split for split in SIDES if split in data.splits()]
    found = dict(zip(named, gather([partial(_split, entry, split) for split in named]), strict=True))
    if "test" not in found:
        found |= _parted(entry, found["train"])
    labels = _labels(entry, found)
    style = entry.prompt or ("chat" if is_chat(entry) else "plain")
    files = hashes_of(data) if isinstance(data, Files) else {}
    details = {} if isinstance(data, Files) else {"data": data.model_dump(mode="json", exclude_none=True)}
    return RawTask("stream", style, labels, found["train"], found["test"], files, details, found.get("validation"))


def is_chat(entry: TaskEntry) -> bool:
    """Whether the tokenizer's chat template goes around a task's prompts."""
    return entry.chat or entry.messages is not None


def _rows(entry: TaskEntry, split: str) -> Rows:
    """The rows of a split, from wherever they are."""
    data = entry.data
    if isinstance(data, Files):
        return rows_of_files(data, split)
    if isinstance(data, Saved):
        return rows_of_saved(data, split)
    assert isinstance(data, Hub)
    return rows_of_hub(data, split)


def _split(entry: TaskEntry, split: str) -> Split:
    """The mapped rows of a split. Raises DataError."""
    parse = mapper_of(entry)
    if "test" in entry.data.splits():  # pyright: ignore[reportAttributeAccessIssue]  not of a published task
        return collect(_rows(entry, split), parse, f"task {entry.name}, {split}")
    assert entry.split is not None
    group = entry.split.group

    def with_group(item: Any, where: str) -> Row | Skip:
        """The row; its group travels in the place of a definition, which tasks of one's own do not have."""
        row = parse(item, where)
        if isinstance(row, Skip) or group is None:
            return row
        if group not in item:
            raise complaint(where, f"there is no column {group!r}", ", ".join(map(str, item)), "correct split.group")
        return Row(row.text, row.answers, json.dumps(as_text(item[group]), default=str), row.weight, row.chat)

    return collect(_rows(entry, split), with_group, f"task {entry.name}")


def _parted(entry: TaskEntry, whole: Split) -> Mapping[str, Split]:
    """The rows of each side, told by their content or their group: rows that are added move no other.

    Raises DataError where a side that is asked for gets none.
    """
    shares = entry.split or Shares()
    places: dict[str, list[int]] = {side: [] for side in SIDES}
    for place, row in enumerate(whole.rows):
        places[_side(shares, row)].append(place)
    wanted = [side for side in SIDES if side != "validation" or shares.validation]
    if empty := [side for side in wanted if not places[side]]:
        raise DataError(
            f"task {entry.name}: split: leaves no rows for {empty[0]} of the {len(whole.rows)} there are; next step: change "
            "the shares or `seed`, or give more rows"
        )
    return {side: Split(_without_group(whole, places[side], shares), whole.dropped) for side in wanted}


def _without_group(whole: Split, places: list[int], shares: Shares) -> Any:
    return held(Picked(whole.rows, places, _ungrouped if shares.group else None))


def _ungrouped(place: int, row: Row) -> Row:
    return Row(row.text, row.answers, "", row.weight, row.chat)


def _side(shares: Shares, row: Row) -> str:
    """Which side a row is on: its hash as a number from 0 to 1, against the shares."""
    content = row.definition if shares.group else json.dumps([row.text, row.answers, row.chat], ensure_ascii=False)
    digest = hashlib.sha256(f"{shares.seed}:{content}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if point < shares.test else "validation" if point < shares.test + shares.validation else "train"


def _labels(entry: TaskEntry, found: Mapping[str, Split]) -> tuple[str, ...] | None:
    """The label set: as the stream lists it, or what the answers are, sorted. Raises DataError for fewer than two, and for
    aliases that do not go with them."""
    if not entry.labels_from_data:
        return tuple(entry.labels) if entry.labels else None
    labels = tuple(sorted({row.answers[0] for split in found.values() for row in split.rows}))
    if len(labels) < 2:
        raise DataError(f"task {entry.name}: labels: from_data finds only {list(labels)}; next step: list the labels")
    forms = Counter(unicodedata.normalize("NFC", label) for label in labels)
    if alike := [label for label in labels if forms[unicodedata.normalize("NFC", label)] > 1]:
        raise complaint(
            f"task {entry.name}, labels: from_data", f"{', '.join(map(ascii, alike))} are one text in two Unicode forms",
            "each label in one form", "bring the column into one form, or map one to the other with `labels: {raw: label}`",
        )  # fmt: skip
    if strangers := [label for label in entry.aliases if label not in labels]:
        raise complaint(
            f"task {entry.name}", f"aliases of {strangers[0]!r}, which is no answer in the data", ", ".join(labels),
            "correct `aliases`",
        )  # fmt: skip
    if twice := [word for words in entry.aliases.values() for word in words if word in labels]:
        raise complaint(
            f"task {entry.name}", f"the alias {twice[0]!r} is itself a label", "words that are no label",
            "correct `aliases`, or map one label to the other with `labels: {raw: label}`",
        )  # fmt: skip
    return labels
