"""Tasks of one's own: the rows of their tables, read once, mapped and parted. They are in memory only if they are few."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from raycl.errors import DataError, shown
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
    parted = "test" not in data.splits()
    steps = [partial(_split, entry, split) for split in data.splits() if not (parted and split == "train")]
    steps += [partial(_parted, entry, entry.split or Shares())] if parted else []
    found = {side: rows for part in gather(steps) for side, rows in part.items()}
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


def _split(entry: TaskEntry, split: str) -> Mapping[str, Split]:
    """The mapped rows of a split that the data have themselves. Raises DataError."""
    return {split: collect(_rows(entry, split), mapper_of(entry), f"task {entry.name}, {split}")}


def _parted(entry: TaskEntry, shares: Shares) -> Mapping[str, Split]:
    """The rows of each side, told by their content or their group: rows that are added move no other.

    Raises DataError for bad rows, and where a side that is asked for gets none.
    """
    parse, sides = mapper_of(entry), list[str]()

    def noting_its_side(item: Any, where: str) -> Row | Skip:
        row = parse(item, where)
        if isinstance(row, Row):
            sides.append(_side(shares, _group(item, shares.group, where) if shares.group else _content(row)))
        return row

    whole = collect(_rows(entry, "train"), noting_its_side, f"task {entry.name}")
    places = {name: [place for place, side in enumerate(sides) if side == name] for name in SIDES}
    wanted = [side for side in SIDES if side != "validation" or shares.validation]
    if empty := [side for side in wanted if not places[side]]:
        raise DataError(
            f"task {entry.name}: split: leaves no rows for {empty[0]} of the {len(whole.rows)} there are; next step: change "
            "the shares or `seed`, or give more rows"
        )
    return {side: Split(held(Picked(whole.rows, places[side])), whole.dropped) for side in wanted}


def _group(item: Any, column: str, where: str) -> str:
    """What tells a row's group. Raises DataError where its column is missing."""
    if column not in item:
        raise complaint(where, f"there is no column {shown(column)}", ", ".join(map(str, item)), "correct split.group")
    return json.dumps(as_text(item[column]), default=str)


def _content(row: Row) -> str:
    """What tells a row from others."""
    return json.dumps([row.text, row.answers, row.chat], ensure_ascii=False)


def _side(shares: Shares, content: str) -> str:
    """Which side a row with this content, or of this group, is on: its hash as a number from 0 to 1, against the shares."""
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
            f"task {entry.name}", f"aliases of {shown(strangers[0])}, which is no answer in the data", ", ".join(labels),
            "correct `aliases`",
        )  # fmt: skip
    if twice := [word for words in entry.aliases.values() for word in words if word in labels]:
        raise complaint(
            f"task {entry.name}", f"the alias {shown(twice[0])} is itself a label", "words that are no label",
            "correct `aliases`, or map one label to the other with `labels: {raw: label}`",
        )  # fmt: skip
    return labels
