"""What happens in a run, as values, and who may listen.

A stage reports `StageStart`, `Step` and `Phase`; its worker adds `Adapted`, `StageEnd` and one `Scored` for every cell of
the accuracy matrix, the group of workers `Retry`. These seven are sent between processes and have a JSON form, in which
manifests keep some (`to_json`, `from_json`). The driver hands them on, in order and with what it read from the store among
them, between a `SequenceStart` and a `SequenceEnd`, and says with `RowDone` when a row of the matrix is whole. The terminal,
MLflow, the output files and tests are `Listener`s of that one stream.

    event          reported by   when
    SequenceStart  driver        once, before anything else
    Adapted        worker        its model is loaded, and the modules that get adapters are known
    StageStart     stage         its rows are ready
    Step           stage         every `train.log_every` optimizer steps, the first and the last
    Phase          stage, worker a start-up, a data pass, an evaluation or a wait moves on
    Retry          group         a worker died or failed, and the group is started again
    StageEnd       worker        the stage is in the store; or it was there (`cached`)
    Scored         worker        a cell is in the store; or it was there
    RowDone        driver        all cells of a row are known
    SequenceEnd    driver        once, however the sequence ended

Knows no other room than raycl/files.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from raycl.files import Json

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words: to its end, by an error, or interrupted by its user."""
START_UP = "start_up"
"""Kind of work in `StageEnd.seconds`: loading the model, starting DeepSpeed, building its ops."""


@dataclass(frozen=True)
class Term:
    """A penalty in the loss, as means over the steps since the last record."""

    raw: float
    """The term as its paper defines it."""
    weighted: float
    """raw times its weight lambda."""
    ratio: float
    """weighted over the cross-entropy."""


@dataclass(frozen=True)
class Adapted:
    """A worker has loaded the model, for a method that puts branches on its modules."""

    stage: int
    """Of which it starts up for; 0 = the untrained model."""
    paths: Mapping[str, int]
    """Paths of the adapted modules, those that differ in numbers only as one (`layers.*.q_proj`), and how many there are."""


@dataclass(frozen=True)
class StageStart:
    """A stage begins to train."""

    stage: int
    """1-based, as everywhere."""
    task: str
    steps: int
    """Optimizer steps to come."""


@dataclass(frozen=True)
class Step:
    """Means over the optimizer steps since the last record."""

    stage: int
    step: int
    """1-based within the stage."""
    steps: int
    lr: float
    loss: float
    """Cross-entropy in nats per answer token, weighed as `train.loss` says, penalties left out."""
    tokens_per_s: float
    """Tokens run per second over all workers, padding included."""
    terms: Mapping[str, Term] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    """What the method measures about itself; and `grad_norm`, the length of the last step's gradient over all that trains,
    before it was clipped."""


@dataclass(frozen=True)
class Phase:
    """Work that is no training moves on; `done` of `total` units."""

    stage: int
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Retry:
    """The worker group has failed and is started again; what is in the store stays."""

    reason: str
    """The error's first line."""
    attempt: int
    """1 = the first time that it is started again."""
    most: int
    """So many times at most."""


@dataclass(frozen=True)
class StageEnd:
    """A stage is in the store."""

    stage: int
    task: str
    key: str
    cached: bool
    """Whether it was there before."""
    seconds: Mapping[str, float]
    """Seconds by kind of work: train, pass_before, pass_after, other; start_up, if its process started for this stage."""
    gauges: Mapping[str, float]
    log: tuple[Step, ...] = ()
    """Of a stage that nobody reported live: its steps, from the manifest. No part of the JSON form."""
    health: tuple[str, ...] = ()
    """Signs that its training went wrong, a sentence each."""


@dataclass(frozen=True)
class Scored:
    """A cell a[t][i] of the accuracy matrix."""

    stage: int
    """t; 0 = the untrained model."""
    task: str
    metric: str
    score: float
    """0 to 100."""
    examples: int
    seconds: float
    seen: bool
    """Whether the task had been trained by then."""
    further: Mapping[str, float] = field(default_factory=dict)
    """The task's further metrics, 0 to 100 each."""
    health: tuple[str, ...] = ()
    """Signs that the stage did not learn what the score seems to say, a sentence each."""
    doubtful: float | None = None
    """Share of the answers that another batch may turn into others, by rounding in bf16, 0 to 100; none = not known."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage in a `SequenceStart`."""

    stage: int
    task: str
    key: str
    stored: bool
    """Whether the store holds it already."""
    train: int
    """Training examples."""
    test: int
    """Test examples."""


@dataclass(frozen=True)
class Dataset:
    """One split of a task's data in a `SequenceStart`."""

    task: str
    split: Literal["train", "test"]
    digest: str
    """SHA-256 of its examples, as in the keys."""
    rows: int
    source: Json
    """Where it comes from: source, layout, files with their hashes, licence; what is not known is left out."""


@dataclass(frozen=True)
class SequenceStart:
    """A sequence begins: its run spec as JSON and its stages."""

    spec: Json
    stages: tuple[PlannedStage, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    """What it runs on and where it reads and writes, for people: device, store, output."""
    data: tuple[Dataset, ...] = ()
    environment: Json = field(default_factory=dict)
    """What it runs with, as manifests record it: libraries, the source's git commit."""


@dataclass(frozen=True)
class Routing:
    """Whose weights answered the test inputs, after a stage of a method that decides that input by input."""

    tasks: tuple[str, ...]
    """The tasks seen so far."""
    counts: tuple[tuple[int, ...], ...]
    """[i][j] = test inputs of task i that the weights of task j answered."""
    unknown: tuple[int, ...]
    """[i] = test inputs of task i that the base model answered alone."""
    changed: float
    """Share, 0 to 1, of the earlier tasks' inputs that the stage before had sent elsewhere; NaN = nothing to compare."""
    oracle_ap: float
    """AP if every input had been answered by its own task's weights; NaN = not scored."""


@dataclass(frozen=True)
class RowDone:
    """A row of the accuracy matrix is whole."""

    stage: int
    scores: Mapping[str, float]
    """Task -> score of the tasks seen so far."""
    measures: Mapping[str, float]
    """AP, FT, BWT, FWT after this stage; NaN = undefined."""
    routing: Routing | None = None
    """Where the method routes its inputs."""
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Task -> further metrics of the tasks seen so far that have any."""
    doubtful: float | None = None
    """Share of the row's answers that another batch may turn into others, 0 to 100; none = not known of any task."""


@dataclass(frozen=True)
class SequenceEnd:
    """A sequence has ended."""

    status: Status
    matrix: Json
    """`AccuracyMatrix.to_json`."""
    facts: Json = field(default_factory=dict)
    """What summary.json holds beside the measures; empty unless the sequence came to its end."""
    places: Mapping[str, str] = field(default_factory=dict)
    """What to look at -> where it is, for people."""
    routing: Routing | None = None
    """After the last stage, where the method routes its inputs and the sequence came to its end."""


StageEvent = Adapted | StageStart | Step | Phase | Retry | StageEnd | Scored
"""What a worker reports, or the group of workers."""
Event = StageEvent | SequenceStart | RowDone | SequenceEnd


class Listener(Protocol):
    """Whoever wants to hear of a sequence."""

    def handle(self, event: Event) -> None:
        """Take note of an event. Called in the driver's process, one event at a time; must not raise."""


NAMES: dict[type[StageEvent], str] = {
    StageStart: "stage_start",
    Step: "step",
    Phase: "phase",
    Adapted: "adapted",
    Retry: "retry",
    StageEnd: "stage_end",
    Scored: "scores",
}
"""The `event` field of the JSON form. Stored manifests hold these names."""


UNSAID: Json = {"health": (), "doubtful": None}
"""Fields that the JSON form leaves out where they have these values; there, null is a number that was not finite."""


def to_json(event: StageEvent) -> Json:
    """The event as plain data, with its name under `event`."""
    values = asdict(event)
    values.pop("log", None)
    said = {name: value for name, value in values.items() if name not in UNSAID or value != UNSAID[name]}
    return {"event": NAMES[type(event)], **said}


def from_json(values: Mapping[str, Any]) -> StageEvent:
    """The inverse of `to_json`. A null, which stands for a number that was not finite, comes back as NaN.

    Raises ValueError for an unknown event, TypeError for missing or unknown fields.
    """
    kinds = {name: kind for kind, name in NAMES.items()}
    fields = {name: _with_nan(value) for name, value in values.items() if name != "event"}
    kind = kinds.get(values.get("event", ""))
    if kind is None:
        raise ValueError(f"unknown event {values.get('event')!r}; known: {', '.join(kinds)}")
    if kind is Step:
        fields["terms"] = {name: Term(**term) for name, term in fields.get("terms", {}).items()}
    if "health" in fields:
        fields["health"] = tuple(fields["health"])
    return kind(**fields)


def _with_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_nan(item) for name, item in value.items()}
    return math.nan if value is None else value


def work_seconds(seconds: Mapping[str, float]) -> float:
    """What a stage costs in seconds: all that its method does, and not the start of the process that did it."""
    return sum(value for name, value in seconds.items() if name != START_UP)


def status_of(error: BaseException) -> Status:
    """How a run that `error` ended is recorded: what its user stopped was killed, anything else failed."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
