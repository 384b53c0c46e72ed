"""What a run would do, on the terminal and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.outlook import Memory, Outlook
from raycl.files import Json
from raycl.report.pace import duration
from raycl.report.plan import aligned, settings_words

UNKNOWN = "no stage of this model on this machine yet"


def print_outlook(outlook: Outlook, spec: Json, places: Mapping[str, str], console: Console) -> None:
    """The stages as a table; above it what the run is, below it what it would take.

    `spec` is the run spec as JSON, `places` where it would read and write.
    """
    for line in aligned({**settings_words(spec), **places}):
        say(console, line)
    console.print(_table(outlook))
    for line in aligned(words(outlook)):
        say(console, line)
    for note in outlook.notes:
        say(console, f"note: {note}")


def words(outlook: Outlook) -> dict[str, str]:
    """Totals and estimates, each with what it is made from."""
    to_run = [stage for stage in outlook.stages if not stage.stored]
    tokens = sum(stage.tokens or 0 for stage in to_run)
    about = "about " if any(stage.sampled for stage in to_run) else ""
    scoring, steps = outlook.scoring, sum(stage.steps for stage in to_run)
    return {
        "to run": f"{len(to_run)} of {len(outlook.stages)} stages, {steps:,} optimizer steps, {about}{tokens:,} tokens",
        "to score": f"{scoring.cells - scoring.stored} of {scoring.cells} cells, {scoring.examples:,} test examples",
        "training": _training(outlook),
        "scoring": _scoring(outlook),
        "memory": f"about {in_bytes(outlook.memory.total)} a worker, an estimate: {parts(outlook.memory)}",
    }


def as_json(outlook: Outlook, spec: Json, places: Mapping[str, str]) -> Json:
    """All of it for programs; bytes and seconds."""
    return {
        **asdict(outlook),
        "training_seconds": outlook.training_seconds,
        "scoring_seconds": outlook.scoring_seconds,
        "memory": {**asdict(outlook.memory), "total": outlook.memory.total},
        "places": dict(places),
        "spec": spec,
    }


def say(console: Console, text: str) -> None:
    """One line, however long."""
    console.print(text, soft_wrap=True, markup=False)


def _table(outlook: Outlook) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("stage", "task", "key", "state", "rows", "steps", "tokens"):
        text = name in ("task", "key", "state")
        table.add_column(name, justify="left" if text else "right", no_wrap=name != "task")
    for one in outlook.stages:
        state = Text("stored", style="green") if one.stored else Text("to run")
        tokens = "" if one.tokens is None else f"{'~' if one.sampled else ''}{one.tokens:,}"
        table.add_row(str(one.stage), Text(one.task), one.key[:12], state, f"{one.rows:,}", f"{one.steps:,}", tokens)
    return table


def _training(outlook: Outlook) -> str:
    seconds, speed = outlook.training_seconds, outlook.speed
    if speed is None or seconds is None:
        return UNKNOWN
    stages = f"{speed.stages} stored {'stage' if speed.stages == 1 else 'stages'}"
    of = "" if speed.same_method else " of other methods"
    return f"about {duration(seconds)}, at the {speed.tokens_per_s:,.0f} tokens/s of {stages}{of}"


def _scoring(outlook: Outlook) -> str:
    seconds = outlook.scoring_seconds
    if seconds is None:
        return "no cell of this sequence is stored yet, so nothing is known of its time"
    return f"about {duration(seconds)}, as this sequence's stored cells went"


def parts(memory: Memory) -> str:
    """What memory is made up of, in words."""
    return ", ".join(f"{name} {in_bytes(value)}" for name, value in asdict(memory).items())


def in_bytes(count: float) -> str:
    """Bytes in the unit that people would use."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
