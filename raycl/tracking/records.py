"""What MLflow is told, in its own words: events as metrics, settings as params and tags. Plain data, no MLflow."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raycl.events import PlannedStage, SequenceStart, StageEnd, Step
from raycl.fields import at_stage
from raycl.files import Json, dotted

LONGEST_PARAM = 500
"""Characters of a param's value shown as they are; a longer value is shown by its hash (spec.json has it in full)."""


@dataclass(frozen=True)
class About:
    """What MLflow shows of a run beside its params: a description, and what it was made with."""

    note: str
    """Markdown."""
    environment: Json
    """As `SequenceStart.environment`."""

    @property
    def tags(self) -> dict[str, str]:
        """Description, program and git commit (where it is known) in MLflow's own tags."""
        git = self.environment.get("git") or {}
        changed = " The source differed from its commit." if git.get("dirty") else ""
        commit = {"mlflow.source.git.commit": git["commit"]} if git else {}
        program = Path(sys.argv[0]).name
        source = "raycl" if program == "__main__.py" else program
        tags = {"mlflow.source.name": source, "mlflow.source.type": "LOCAL"}
        return {**tags, **commit, "mlflow.note.content": self.note + changed}


def sequence_note(event: SequenceStart) -> str:
    """A sequence in words: method, model, tasks with their numbers, and where things are."""
    spec = event.spec
    over = f" over {spec['method']['over']}" if spec["method"].get("over") else ""
    tasks = ", ".join(f"{number} {task}" for number, task in enumerate(spec["tasks"], start=1))
    places = "".join(f" {name.capitalize()}: {place}." for name, place in event.places.items())
    return f"{spec['method']['name']}{over} on {spec['model']['name']}, seed {spec['seed']}. Tasks: {tasks}.{places}"


@dataclass
class RunRecord:
    """One MLflow run as the writer sees it: its id, the metrics that wait to be sent, and the points it already has.

    A point (metric, step) is written once, so a stage that is replayed after a restart draws no second line.
    """

    id: str = ""
    """Empty until MLflow has answered."""
    ended: bool = False
    buffer: list[tuple[str, float, int, int]] = field(default_factory=list)
    """(metric, value, time in ms, step)."""
    sent: float = field(default_factory=time.monotonic)
    """When the buffer was last sent, on the monotonic clock in seconds."""
    points: set[tuple[str, int]] = field(default_factory=set)


def step_metrics(event: Step) -> dict[str, float]:
    """The metrics of a step: loss, lr, tokens_per_s, terms/<name>/raw|weighted|ratio, gauges/<name>."""
    metrics = {"loss": event.loss, "lr": event.lr, "tokens_per_s": event.tokens_per_s}
    for name, term in event.terms.items():
        metrics |= {f"terms/{as_name(name)}/{kind}": value for kind, value in asdict(term).items()}
    return metrics | {f"gauges/{as_name(name)}": value for name, value in event.gauges.items()}


def end_metrics(event: StageEnd) -> dict[str, float]:
    """The metrics of a stage's end: seconds/<what>, and stage/<gauge> (gauges/ holds those of single steps)."""
    seconds = {f"seconds/{as_name(name)}": value for name, value in event.seconds.items()}
    return seconds | {f"stage/{as_name(name)}": value for name, value in event.gauges.items()}


def shared_tags(spec: Mapping[str, Any]) -> dict[str, str]:
    """The tags the run of a sequence and the runs of its stages share, so that a flat search finds either."""
    values = {"method": spec["method"]["name"], "order": spec["order"], "seed": spec["seed"]}
    values |= {"model": spec["model"]["name"], "preset": spec.get("preset", "none")}
    return {f"raycl.{name}": str(value) for name, value in values.items()}


def stage_params(spec: Mapping[str, Any], planned: PlannedStage | None, stage: int) -> dict[str, str]:
    """What a stage's run is compared by: its task, its numbers of examples, the settings it had."""
    examples = {} if planned is None else {"train_examples": planned.train, "test_examples": planned.test}
    train = {name: at_stage(value, stage) for name, value in spec.get("train", {}).items()}
    shared = {name: spec[name] for name in ("order", "seed", "method")}
    task = spec["tasks"][stage - 1] if planned is None else planned.task
    return flat({"stage": stage, "task": task, **examples, **shared, "train": train})


def as_name(text: str) -> str:
    """`text` with the characters MLflow does not allow in one part of a metric's name replaced."""
    return re.sub(r"[^\w\-. ]", "_", text)


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as `outer.inner` -> text; lists as JSON; what is longer than `LONGEST_PARAM` as its hash."""
    return {name: _param(value) for name, value in dotted(values).items()}


def _param(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST_PARAM:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()} ({len(text)} characters)"
