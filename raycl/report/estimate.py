"""What a run would take, on the terminal and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl.analysis.cost import PHASES
from raycl.analysis.estimate import Estimate, SweepEstimate
from raycl.files import Json
from raycl.report import outlook as report
from raycl.report.outlook import in_bytes, parts, say
from raycl.report.pace import duration
from raycl.report.plan import aligned, settings_words

TITLES = {"train": "training", "passes": "passes", "score": "scoring"}


def print_estimate(estimate: Estimate, places: Mapping[str, str], console: Console) -> None:
    """The stages as a table with the time of each phase; below it totals, and what they stand on."""
    for line in aligned({**settings_words(estimate.spec), **places}):
        say(console, line)
    console.print(_table(estimate))
    for line in aligned(words(estimate)):
        say(console, line)
    for text in (*estimate.assumptions, *estimate.outlook.notes):
        say(console, f"assumed: {text}")


def words(estimate: Estimate) -> dict[str, str]:
    """Totals."""
    outlook = estimate.outlook
    phases = {TITLES[phase]: _time(outlook.phase_seconds(phase)) for phase in PHASES}
    on = f"{estimate.gpus} GPUs" if estimate.gpus else "this machine"
    work = sum(stage.train.multiply_adds + stage.passes.multiply_adds for stage in outlook.stages)
    work += sum(row.work.multiply_adds for row in outlook.rows)
    return {
        "in all": f"{_time(outlook.phase_seconds(*PHASES))} on {on}: "
        + ", ".join(f"{name} {time}" for name, time in phases.items()),
        "work": f"{work:.2e} multiply-adds, over {outlook.workers} {'process' if outlook.workers == 1 else 'processes'}",
        "store": f"at least {in_bytes(outlook.stored_bytes)}: what trains, in fp32, and the answers",
        "memory": f"about {in_bytes(outlook.memory.total)} a process: {parts(outlook.memory)}",
        **({"sweep": _sweep(estimate.sweep)} if estimate.sweep else {}),
    }


def as_json(estimate: Estimate, places: Mapping[str, str]) -> Json:
    """All of it for programs; bytes, seconds and multiply-adds."""
    outlook = estimate.outlook
    seconds = [{"stage": stage, **phases} for stage, phases in outlook.seconds.items()]
    return {
        **report.as_json(outlook, estimate.spec, places),
        "gpus": estimate.gpus,
        "at_once": estimate.at_once,
        "seconds": seconds,
        "total_seconds": outlook.phase_seconds(*PHASES),
        "stored_bytes": outlook.stored_bytes,
        "assumptions": list(estimate.assumptions),
        "sweep": asdict(estimate.sweep) if estimate.sweep else None,
    }


def _table(estimate: Estimate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("stage", "task", "steps", "tokens", *TITLES.values()):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=name != "task")
    stages = {stage.stage: stage for stage in estimate.outlook.stages}
    for number, phases in estimate.outlook.seconds.items():
        times = [_time(phases[phase]) for phase in PHASES]
        if number not in stages:
            table.add_row(str(number), "the untrained model", "", "", "", "", times[-1])
            continue
        one = stages[number]
        steps = ("stored", "") if one.stored else (f"{one.steps:,}", f"{'~' if one.sampled else ''}{one.tokens or 0:,}")
        table.add_row(str(number), Text(one.task), *steps, *times)
    return table


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _sweep(sweep: SweepEstimate) -> str:
    return (
        f"{sweep.trials} trials, {sweep.at_once} at once: {duration(sweep.seconds)}; of {sweep.needed} stage runs "
        f"{sweep.distinct} are different and {sweep.stored} stored (each trial on its own, one after another: "
        f"{duration(sweep.apart_seconds)})"
    )
