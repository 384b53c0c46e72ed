"""The streams at hand: the built-in ones, and in front of them the user's own. What a name stands for is looked up here
before any path is built from it, so a name can never lead out of a data folder."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycl.errors import SpecError, first_line, one_message, problems, shown
from raycl.fields import fields_at
from raycl.files import Json
from raycl.reading import YAML, parse_yaml, read_text
from raycl.tasks.stream import Demo, Published, Stream, TaskEntry

BUILT_IN = ("long", "superni", "demo")
"""Streams in the package, as they are listed."""
HINT = "Run `raycl tasks check FILE` after mending it; docs/streams.md has the form."


@dataclass(frozen=True)
class Catalogue:
    """Tasks and orders by name."""

    streams: tuple[Stream, ...]
    """The user's own stream first."""

    @functools.cached_property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """Every known task by its canonical name; the first stream that has a name says what it is."""
        found: dict[str, TaskEntry] = {}
        for stream in self.streams:
            for entry in stream.tasks:
                found.setdefault(entry.name, entry)
        return found

    @functools.cached_property
    def orders(self) -> Mapping[str, tuple[str, ...]]:
        """Order id -> canonical task names, first to last."""
        found: dict[str, tuple[str, ...]] = {}
        for stream in self.streams:
            own = stream.stream not in BUILT_IN
            if own:
                found[stream.stream] = tuple(entry.name for entry in stream.tasks)
            for name, tasks in stream.orders.items():
                key = name if not own else stream.stream if name == "default" else f"{stream.stream}/{name}"
                found[key] = tuple(tasks)
        return found

    @property
    def own(self) -> Stream | None:
        """The user's stream, if there is one."""
        return self.streams[0] if self.streams[0].stream not in BUILT_IN else None

    def stream(self, name: str) -> tuple[str, ...]:
        """The tasks of a stream."""
        return next(tuple(entry.name for entry in one.tasks) for one in self.streams if one.stream == name)

    def home(self, name: str) -> str:
        """The name of the stream that says what a task is."""
        return next(one.stream for one in self.streams for entry in one.tasks if entry.name == name)

    def require(self, name: str) -> str:
        """The canonical name for a task's name. Raises SpecError for an unknown one."""
        found = self.canonical(name)
        if found is None:
            raise SpecError(
                f"task {shown(name)}: unknown; allowed: {', '.join(self.tasks)}; next step: see `raycl tasks list`"
            )
        return found

    def canonical(self, name: str) -> str | None:
        """The canonical name for a name, an alias or a SuperNI number (`SST-2`, `boolqa`, `task1572`, `073`); else none."""
        if name in self.tasks:
            return name
        plain = plain_name(name)
        if plain in self._plain_names:
            return self._plain_names[plain]
        match = re.fullmatch(r"(?:task)?([0-9]{1,6})", plain)
        prefix = f"task{int(match[1]):03d}_" if match else None
        return next((known for known in self.tasks if prefix and known.startswith(prefix)), None)

    @functools.cached_property
    def _plain_names(self) -> Mapping[str, str]:
        """Of two tasks with one plain name the first counts."""
        entries = list(self.tasks.values())[::-1]
        return {plain_name(word): entry.name for entry in entries for word in (entry.name, *entry.other_names)}


def plain_name(name: str) -> str:
    """A name without case, punctuation and spaces: `SST-2` and `sst2` are the same."""
    return re.sub(r"[\W_]", "", name.casefold())


def open_catalogue(stream: str | None = None) -> Catalogue:
    """The built-in streams, with the user's `stream` (a path) before them. Raises SpecError for a file that is no stream."""
    built_in = _built_in()
    return built_in if stream is None else Catalogue((read_stream(Path(stream)), *built_in.streams))


def read_stream(path: Path) -> Stream:
    """The stream in a file, its paths made absolute. Raises SpecError with all that is wrong with it."""
    path = path.expanduser()
    try:
        text = read_text(path, YAML)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
        raise SpecError(f"--stream {path}: cannot be read ({why}); give a YAML file, see docs/streams.md") from None
    stream = parse_stream(text, str(path), _built_in().tasks)
    if stream.stream in (*BUILT_IN, *_built_in().orders):
        raise SpecError(
            f"{path}: stream: {shown(stream.stream)} is a built-in stream or order; give yours another name"
        )
    folder = path.resolve().parent
    moved = [entry.model_copy(update={"data": entry.data.below(folder)}) for entry in stream.tasks]
    return stream.model_copy(update={"tasks": moved})


def parse_stream(text: str, where: str, others: Mapping[str, TaskEntry] | None = None) -> Stream:
    """The stream that a YAML text describes; `others` are the tasks that `use` may name. Raises SpecError."""
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise SpecError(f"{where}: {error}; docs/streams.md has the form") from None
    if not isinstance(value, dict):
        raise SpecError(f"{where}: expected a mapping with `stream` and `tasks`; docs/streams.md has the form")
    known = others or {}
    lines = [*_misplaced(value), *_wrong_uses(value, known)]
    try:
        stream = Stream.model_validate(_expanded(value, known))
    except ValidationError as error:
        lines += problems(error, lambda place: _named(place, value), lambda place: fields_at(Stream, place))
        raise SpecError(one_message(where, lines, HINT)) from None
    if lines := lines or [*_repeated(stream), *_unknown_in_orders(stream), *_taken(stream, known)]:
        raise SpecError(one_message(where, lines, HINT))
    return stream


def _misplaced(value: Json) -> Iterable[str]:
    """Defaults in a form that would give no task anything."""
    for name in ("defaults", "categories"):
        if not isinstance(value.get(name) or {}, dict):
            yield f"{name}: expected a mapping (got {shown(value[name])})"
    categories, tasks = value.get("categories"), value.get("tasks")
    if isinstance(categories, dict) and isinstance(tasks, list):
        used = [task.get("category") for task in tasks if isinstance(task, dict)]
        for name, fields in categories.items():
            if not isinstance(fields, dict):
                yield f"categories.{name}: expected a mapping of fields (got {shown(fields)})"
            elif name not in used:
                yield f"categories.{name}: no task has this category; write `category: {name}` in those that it is for"


def _expanded(value: Json, others: Mapping[str, TaskEntry]) -> Json:
    """The file's content with `defaults` and `categories` put into each task, and built-in tasks in the place of `use`."""
    left = {name: part for name, part in value.items() if name not in ("defaults", "categories")}
    tasks = value.get("tasks")
    if isinstance(tasks, list):
        left["tasks"] = [_task(value, task, others) for task in tasks]
    return left


def _task(value: Json, task: Any, others: Mapping[str, TaskEntry]) -> Any:
    """One task with what it is given by default: `defaults` < `categories` < its own."""
    if not isinstance(task, dict):
        return task
    if "use" in task and others:
        return _used(task, others)
    defaults, categories = value.get("defaults") or {}, value.get("categories") or {}
    category = task.get("category")
    of_kind = categories.get(category) if isinstance(categories, dict) and isinstance(category, str) else None
    layers = [layer for layer in (defaults, of_kind or {}, task) if isinstance(layer, dict)]
    return {name: part for layer in layers for name, part in layer.items()}


_SETTABLE = ("max_answer_tokens", "run", "test_examples", "train_examples")
"""Fields that a stream may set on a built-in task."""


def _used(task: Json, others: Mapping[str, TaskEntry]) -> Any:
    """A built-in task with the fields that a stream sets on it. What `_wrong_uses` names is left out."""
    name = str(task["use"])
    known = others.get(name) or next(iter(others.values()))
    said = {field: task[field] for field in _SETTABLE if field in task}
    base = {field: getattr(known, field) for field in known.model_fields_set}
    return base | said


def _wrong_uses(value: Json, others: Mapping[str, TaskEntry]) -> Iterable[str]:
    """Uses of tasks that are not built in, and of fields that cannot be set on those that are."""
    tasks = value.get("tasks")
    for task in tasks if isinstance(tasks, list) else ():
        if not isinstance(task, dict) or "use" not in task:
            continue
        name = str(task["use"])
        if name not in others:
            close = difflib.get_close_matches(name, others, n=1)
            guess = f" (nearest: {close[0]!r})" if close else ""
            yield f"tasks: use: {shown(task['use'])} is no built-in task{guess}; `raycl tasks list` shows those there are"
        for stranger in sorted(map(str, set(task) - {"use", *_SETTABLE})):
            yield f"tasks: use: {name}: {shown(stranger)} cannot be set on a built-in task; allowed: {', '.join(_SETTABLE)}"


def _taken(stream: Stream, others: Mapping[str, TaskEntry]) -> Iterable[str]:
    """Own tasks that would stand in the place of built-in ones, in published orders too."""
    for entry in stream.tasks:
        if entry.name in others and is_own(entry):
            yield f"task {shown(entry.name)}: is a built-in task; give yours another name, or take that one with `use`"


def _named(place: str, value: Json) -> str:
    """`tasks.2.labels` as `task 'reply': labels`."""
    match = re.match(r"tasks\.(\d+)\.?(.*)", place)
    tasks = value.get("tasks")
    if not match or not isinstance(tasks, list) or int(match[1]) >= len(tasks):
        return place
    task = tasks[int(match[1])]
    name = task.get("name", task.get("use")) if isinstance(task, dict) else None
    return f"task {shown(name)}{f': {match[2]}' if match[2] else ''}" if name else place


def _repeated(stream: Stream) -> Iterable[str]:
    """Task names that stand twice."""
    names = [entry.name for entry in stream.tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    return (f"tasks: {shown(name)} stands twice; every task needs a name of its own" for name in twice)


def _unknown_in_orders(stream: Stream) -> Iterable[str]:
    """Orders that name tasks which the stream does not have, or one twice."""
    known = {entry.name for entry in stream.tasks}
    for order, tasks in stream.orders.items():
        if strangers := [task for task in tasks if task not in known]:
            yield (
                f"orders.{order}: {shown(strangers[0])} is no task of the stream; allowed: {', '.join(sorted(known))}; "
                "a built-in task is named by `use`"
            )
        if len(set(tasks)) != len(tasks) or not tasks:
            yield f"orders.{order}: needs at least one task, and each once"


@functools.lru_cache(maxsize=1)
def _built_in() -> Catalogue:
    """The streams in the package."""
    folder = resources.files("raycl.tasks") / "builtin"
    texts = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in BUILT_IN}
    return Catalogue(tuple(parse_stream(text, f"raycl/tasks/builtin/{name}.yaml") for name, text in texts.items()))


def is_published(entry: TaskEntry) -> bool:
    """Whether the run spec says where a task's data lie, and not the stream."""
    return isinstance(entry.data, Published)


def is_own(entry: TaskEntry) -> bool:
    """Whether a stream says itself where a task's data lie, as users' streams do."""
    return not isinstance(entry.data, Published | Demo)
