"""Names and a data spec in, tasks out: read, draw, render, record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl.errors import DataError, shown
from raycl.files import is_folder
from raycl.sections import DataSpec
from raycl.tasks.catalogue import is_own, open_catalogue
from raycl.tasks.code import Code, find_code, is_code
from raycl.tasks.demo import load_demo
from raycl.tasks.folder import load_folder
from raycl.tasks.hub import load_hub
from raycl.tasks.own import is_chat, load_own
from raycl.tasks.prompts import Renderer
from raycl.tasks.rows import HubUnreachable, RawTask, Row, Split
from raycl.tasks.sampling import draw
from raycl.tasks.scoring import label_metric, text_metric
from raycl.tasks.stored import Picked, held
from raycl.tasks.stream import Demo, Published, TaskEntry
from raycl.tasks.task import Example, Metric, Task

Source = Callable[[TaskEntry], RawTask]


def load_tasks(names: Sequence[str], data: DataSpec) -> list[Task]:
    """The tasks with these canonical names, drawn and rendered as `data` says, in the given order.

    A task is the same whatever else is loaded, and in whatever order. Raises DataError that lists the problems of all
    tasks at once, SpecError for a bad stream, and SetupError if the package with the demo's files is missing.
    """
    entries = open_catalogue(data.stream).tasks
    source = open_source(data, [entries[name] for name in names if name in entries])
    tasks: list[Task] = []
    problems: list[str] = []
    for name in names:
        try:
            if name not in entries:
                raise DataError(
                    f"task {shown(name)}: unknown; allowed: {', '.join(entries)}; next step: see `raycl tasks list`"
                )
            tasks.append(build_task(entries[name], source, data))
        except HubUnreachable as error:
            problems += str(error).split("\n")
            break  # the other tasks would only wait for the same time-out
        except DataError as error:
            problems += str(error).split("\n")
    if problems:
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError("\n".join([f"{head} in the task data:", *(f"  - {line}" for line in problems)]))
    return tasks


def open_source(data: DataSpec, entries: Sequence[TaskEntry] = ()) -> Source:
    """The function that reads one task. Raises DataError if `data.source` is no folder and one of `entries` needs it.

    `data.source` is where published tasks are. Others say themselves where they are, so that an order can mix them.
    """
    published: Source = load_demo if data.source == "demo" else lambda entry: load_hub(entry, data.seed)
    if data.source not in ("demo", "hub"):
        root = Path(data.source).expanduser()
        wanted = not entries or any(isinstance(entry.data, Published) for entry in entries)
        if wanted and not (data.source and is_folder(root)):
            raise DataError(
                f"data.source: {shown(data.source)} is not a folder; allowed: `demo`, `hub`, or a folder in the O-LoRA, the "
                "GainLoRA or the JSONL benchmark layout; next step: correct `--data` (or RAYCL_DATA), or try `--order demo`"
            )
        published = lambda entry: load_folder(root, entry)  # noqa: E731

    def read(entry: TaskEntry) -> RawTask:
        if isinstance(entry.data, Published):
            return published(entry)
        return load_demo(entry) if isinstance(entry.data, Demo) else load_own(entry)

    return read


def build_task(entry: TaskEntry, source: Source, data: DataSpec) -> Task:
    """Read one task from `source`, draw its examples, render them and keep the record. Raises DataError."""
    code = _code(entry, data)
    raw = source(entry)
    sizes = _least(data.train_examples, entry.train_examples), _least(data.test_examples, entry.test_examples)
    draw = _Draw(entry, raw, data)
    train = draw.examples("train", raw.train, sizes[0])
    if data.test_split != "validation":
        test = draw.examples("test", raw.test, sizes[1])
    elif raw.validation is not None:
        test = draw.examples("validation", raw.validation, sizes[1])
    else:
        test = draw.left_out(train, sizes)
    metric, *further = _metrics(entry, raw)
    record = _record(raw, train, test, draw) | {"metric": metric}
    aliases = tuple(word for words in entry.aliases.values() for word in words)
    own = is_own(entry)
    return Task(entry.name, entry.category, metric, raw.labels, train, test, record, tuple(further), aliases, code, own)


def _least(*counts: int | None) -> int | None:
    """The smaller limit; none = no limit."""
    return min((count for count in counts if count is not None), default=None)


def _metrics(entry: TaskEntry, raw: RawTask) -> list[Metric]:
    """The task's metrics, each once. Raises DataError where nothing tells the labels apart."""
    wanted = entry.metric or ["exact_match" if raw.labels else "rouge_l"]
    return list(dict.fromkeys(_metric(one, entry, raw) for one in wanted))


def _metric(wanted: Metric, entry: TaskEntry, raw: RawTask) -> Metric:
    """A metric as it counts for this task: of labels what tells them apart, of free text what sees its words.

    Raises DataError where nothing tells the labels apart.
    """
    if wanted == "rouge_l":
        splits = (raw.train, raw.test)
        return text_metric(answer for split in splits for row in split.rows for answer in row.answers)
    if raw.labels is None or wanted != "exact_match":
        return wanted
    try:
        return label_metric(raw.labels, entry.aliases)
    except ValueError as error:
        raise DataError(f"task {entry.name}: {error}; allowed: different labels; next step: rename them") from None


def _code(entry: TaskEntry, data: DataSpec) -> dict[str, Code]:
    """The metrics that are functions of the user's. Raises DataError where running them is not allowed."""
    own = [metric for metric in entry.metric if is_code(metric)]
    if own and not data.allow_code:
        raise DataError(
            f"task {entry.name}: metric {shown(own[0])} is Python code; next step: look at it, and allow it with "
            f"--allow-code"
        )
    folder = str(Path(data.stream).expanduser().resolve().parent) if data.stream else None
    return {metric: find_code(metric, folder) for metric in own}


@dataclass(frozen=True)
class Make:
    """Makes a row the example of a split; an id holds the row's index among the usable rows of its split.

    Aliases come in here and not in the row, whose content says on which side of a split it is.
    """

    entry: TaskEntry
    split: str
    render: Renderer

    def __call__(self, index: int, row: Row) -> Example:
        """The example of the row at this index."""
        entry = self.entry
        chat = row.chat if is_chat(entry) else None
        name = f"{entry.name}/{self.split}/{index}"
        aliases = (alias for answer in row.answers for alias in entry.aliases.get(answer, ()))
        answers = tuple(dict.fromkeys([*row.answers, *aliases])) if entry.aliases else row.answers
        return Example(name, *self.render(row), answers, chat, entry.max_answer_tokens, row.weight)


@dataclass(frozen=True)
class _Draw:
    """Draws examples of one task."""

    entry: TaskEntry
    raw: RawTask
    data: DataSpec

    def examples(self, split: str, rows: Split, count: int | None) -> Sequence[Example]:
        """The drawn examples of a split, rendered."""
        return held(self._drawn(split, rows, count))

    def _drawn(self, split: str, rows: Split, count: int | None) -> Picked[Example]:
        total = len(rows.rows)
        chosen: Sequence[int] = range(total)
        if count is not None and count < total:
            classes = [row.answers[0] for row in rows.rows] if self.raw.labels else [""] * total
            chosen = draw(classes, count, f"{self.data.seed}:{self.entry.name}:{split}")
        render = Renderer(self.entry, self.raw.style, self.raw.labels, self.data.reveal_task)
        return Picked(rows.rows, chosen, Make(self.entry, split, render))

    def left_out(self, train: Sequence[Example], sizes: tuple[int | None, int | None]) -> Sequence[Example]:
        """Train rows that the training set leaves out: a larger draw, of which the training set is a part, without it."""
        whole = len(self.raw.train.rows)
        if sizes[0] is None or sizes[1] is None or len(train) == whole:
            raise DataError(
                "data.test_split: 'validation' needs data.train_examples and data.test_examples below the "
                f"{whole} train rows of {self.entry.name}; set both, or use test_split=test"
            )
        used = {example.id for example in train}
        both = self._drawn("train", self.raw.train, sizes[0] + sizes[1])
        return tuple(example for example in both if example.id not in used)


def _record(raw: RawTask, train: Sequence[Example], test: Sequence[Example], draw: _Draw) -> dict[str, Any]:
    """Where the examples came from and what was done to them; JSON-ready."""
    splits = {"train": (raw.train, train), "test": (raw.test, test)}
    data, kind = draw.data, draw.entry.data
    source = data.source if isinstance(kind, Published) else "demo" if isinstance(kind, Demo) else "stream"
    return {
        "source": source,
        "layout": raw.layout,
        "prompt": raw.style if isinstance(raw.style, str) else raw.style.model_dump(),
        "files": raw.files,
        "rows": {split: len(rows.rows) for split, (rows, _) in splits.items()},
        "dropped": {split: rows.dropped for split, (rows, _) in splits.items()},
        "used": {split: len(examples) for split, (_, examples) in splits.items()},
        "label_counts": {split: _label_counts(examples, raw.labels) for split, (_, examples) in splits.items()},
        "sampling_seed": data.seed,
        "licence": draw.entry.licence,
        **raw.details,
    }


def _label_counts(examples: Sequence[Example], labels: tuple[str, ...] | None) -> dict[str, int] | None:
    """Examples per label, in the order of the labels; none for free text."""
    if labels is None:
        return None
    counts = Counter(example.answers[0] for example in examples)
    return {label: counts[label] for label in labels}
