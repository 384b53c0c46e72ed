"""Published tasks from a folder, in one of three layouts that are told apart by the files that are there.

| layout | files of a task |
| --- | --- |
| benchmark | `<task>/{train,test}.jsonl[.gz]`, `labels.json`; SuperNI tasks below `superni/` |
| o-lora | `<category>/<Task>/{train,test,labels}.json` |
| gainlora | `Long_Sequence/<task>/{train,test,labels}.json`, `SuperNI/<task>/{train,test}.json` |

Whether a file of rows is JSON lines or one JSON value is told by its content; the record says where the name says another.
The folder may be the published `CL_Benchmark` folder or its parent. Only the train and the test file are opened:
`dev.json` is a copy of `test.json` in the published data, so nothing may be trained or selected on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from raycl.tasks.files import Lines, Reader
from raycl.tasks.rows import (
    RawTask,
    Row,
    Skip,
    Split,
    checked_label,
    checked_text,
    collect,
    complaint,
    gather,
    left_out,
    shorten,
    text_of,
)
from raycl.tasks.stream import Published, Style, Suite, TaskEntry

Layout = Literal["benchmark", "o-lora", "gainlora"]
_ENDINGS: dict[Layout, tuple[str, ...]] = {
    "benchmark": (".jsonl.gz", ".jsonl"),
    "o-lora": (".json",),
    "gainlora": (".json",),
}


@dataclass(frozen=True)
class Place:
    """Where a task's files are."""

    layout: Layout
    folder: Path
    ending: str

    @property
    def train(self) -> Path:
        """The training file."""
        return self.folder / f"train{self.ending}"

    @property
    def test(self) -> Path:
        """The test file; the same ending as the training file."""
        return self.folder / f"test{self.ending}"


def load_folder(root: Path, entry: TaskEntry) -> RawTask:
    """Read one task from `root`, whatever its layout. Raises DataError with the problems of both its files."""
    place = locate(root, entry)
    reader = Reader(root)
    labels = _labels(reader, place, entry)
    parse = _Parser(entry, labels)
    items = _instances if place.layout == "gainlora" else _listed
    train, test = gather([partial(_split, reader, path, items, parse) for path in (place.train, place.test)])
    details = {"read_as": reader.read_as} if reader.read_as else {}
    return RawTask(place.layout, _style(place.layout, entry), labels, train, test, reader.hashes, details)


def _style(layout: Layout, entry: TaskEntry) -> Style:
    """The prompt layout that goes with a folder layout."""
    if _suite(entry) == "superni":
        return "superni"
    return "long_sequence" if layout == "gainlora" else "o_lora"


def locate(root: Path, entry: TaskEntry) -> Place:
    """The place of a task's files below `root`. Raises DataError that lists where it was looked for."""
    places = [Place(layout, folder, ending) for layout, folder in _folders(root, entry) for ending in _ENDINGS[layout]]
    for place in places:
        if place.train.is_file():
            return place
    looked = ", ".join(str(place.train.relative_to(root)) for place in places)
    raise complaint(
        f"task {entry.name}",
        f"no training file in {root}",
        f"one of {looked}",
        "point `--data` (or RAYCL_DATA) at a folder with this task, or leave the task out of the order",
    )


def _folders(root: Path, entry: TaskEntry) -> Iterator[tuple[Layout, Path]]:
    """The folders a task may be in, with the layout each would mean."""
    superni = _suite(entry) == "superni"
    for base in (root, root / "CL_Benchmark"):
        yield "benchmark", base / "superni" / entry.name if superni else base / entry.name
        if not superni:
            yield "o-lora", base / entry.category / _published(entry).published
        yield "gainlora", base / ("SuperNI" if superni else "Long_Sequence") / entry.name


def _labels(reader: Reader, place: Place, entry: TaskEntry) -> tuple[str, ...] | None:
    """The label set beside the data, else the catalogue's."""
    path = place.folder / "labels.json"
    named = tuple(entry.labels) if entry.labels else None
    labels = reader.labels(path) if path.is_file() else named
    others = _published(entry).gainlora_labels
    return tuple(others) if others and place.layout == "gainlora" and labels == named else labels


def _published(entry: TaskEntry) -> Published:
    """What the stream says of a published task's place. Raises DataError for a task of another kind."""
    if isinstance(entry.data, Published):
        return entry.data
    raise complaint(
        f"task {entry.name}", "is of no public layout", "a published task", "say where its data lie in the stream"
    )


def _suite(entry: TaskEntry) -> Suite:
    return _published(entry).suite


def _split(reader: Reader, path: Path, items: Callable[[Any, Path], list[Any]], parse: _Parser) -> Split:
    """Rows of JSON lines, or what `items` finds in the one JSON value of the file."""
    content = reader.content(path)
    places = content.rows if isinstance(content, Lines) else _numbered(items(content, path), path)
    return collect(places, parse, str(path))


def _listed(value: Any, path: Path) -> list[Any]:
    """The rows of a JSON list."""
    if not isinstance(value, list):
        raise complaint(str(path), f"got {shorten(value)}", "a JSON list of rows", "restore the file from its source")
    return value


def _instances(value: Any, path: Path) -> list[Any]:
    """Rows of a JSON object with `Definition` and `Instances`; the definition is added to each row."""
    instances = value.get("Instances") if isinstance(value, dict) else None
    if not isinstance(instances, list):
        raise complaint(
            str(path), f"got {shorten(value)}", "an object with a list `Instances`", "restore the file from its source"
        )
    definition = value.get("Definition")
    if isinstance(definition, list):
        definition = definition[0] if definition else ""
    return [item | {"definition": definition} if isinstance(item, dict) else item for item in instances]


def _numbered(items: list[Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Each item with its place."""
    return ((f"{path}, index {index}", item) for index, item in enumerate(items))


class _Parser:
    """Turns an item of a file into a row: fields `sentence` and `label`, or `input`, `output` and `definition`."""

    def __init__(self, entry: TaskEntry, labels: tuple[str, ...] | None) -> None:
        self.entry = entry
        self.labels = labels

    def __call__(self, item: Any, where: str) -> Row | Skip:
        if isinstance(item, dict) and "sentence" not in item and "input" in item:
            return self._with_references(item, where)
        text = text_of(item, "sentence", where)
        label = text_of(item, "label", where)
        return self._labelled(text, (label,), "", where)

    def _with_references(self, item: dict[str, Any], where: str) -> Row | Skip:
        """A row of the SAPT and GainLoRA form: `output` is one text or a list of references."""
        text = text_of(item, "input", where)
        output = item.get("output")
        references = [output] if isinstance(output, str) else output
        if not isinstance(references, list) or not references or not all(isinstance(one, str) for one in references):
            raise complaint(
                f"{where}, field 'output'", f"got {shorten(output)}", "a text or a list of texts", "correct the row"
            )
        answers = tuple(checked_text(one, f"{where}, field 'output'") for one in references if one.strip())
        if not answers:
            return Skip("empty reference")
        return self._labelled(text, answers, self._definition(item, where), where)

    def _definition(self, item: dict[str, Any], where: str) -> str:
        """The definition, which only Long_Sequence tasks may lack."""
        if _suite(self.entry) != "superni" and item.get("definition") in (None, ""):
            return ""
        return text_of(item, "definition", where)

    def _labelled(self, text: str, answers: tuple[str, ...], definition: str, where: str) -> Row | Skip:
        """The row, if its answers are labels of the task."""
        if skipped := left_out(answers, self.entry.drop):
            return skipped
        for answer in answers if self.labels else ():
            checked_label(answer, self.labels or (), where)
        return Row(text, answers, definition)
