"""Run a published table at a scale, and lay what was measured beside what was published. Ray only at paper scale."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raycl.analysis.matrix import AccuracyMatrix
from raycl.errors import SpecError
from raycl.files import Json, home
from raycl.report.cards import markdown_table
from raycl.reproduction.cost import estimate
from raycl.reproduction.form import MODELS, Reproduction
from raycl.reproduction.record import identity, report, report_name, write_report
from raycl.reproduction.specs import Place, sequences
from raycl.sections import DataSpec
from raycl.spec import RunSpec

Runner = Callable[[RunSpec], AccuracyMatrix]


@dataclass(frozen=True)
class Where:
    """Where a reproduction reads and writes."""

    output: str | None = None
    """Folder for the reports; none = `reproductions` in raycl's home folder."""
    store: str | None = None
    """Stage store; none = raycl's own at paper scale, and a fresh one for every call at smoke scale."""
    tracking: str | None = None
    """MLflow tracking URI, at paper scale."""

    @property
    def folder(self) -> Path:
        """The folder for the reports."""
        return Path(self.output).resolve() if self.output else home() / "reproductions"


@dataclass(frozen=True)
class Part:
    """Which part of a table is run; none = all of it."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: int | None = None

    def of(self, one: Reproduction) -> Reproduction:
        """The table with these rows and columns only. Raises SpecError for a name that it does not have."""
        rows = _chosen("--row", self.rows, one.rows, one.id)
        return one.model_copy(update={"rows": rows, "columns": _chosen("--column", self.columns, one.columns, one.id)})


def _chosen(flag: str, names: tuple[str, ...], items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    unknown = [name for name in names if name not in [item.label for item in items]]
    if unknown:
        allowed = "; ".join(item.label for item in items)
        raise SpecError(f"{flag} {unknown[0]!r}: not in {where}; allowed: {allowed}; next step: choose one of these")
    return tuple(item for item in items if not names or item.label in names)


def make_place(scale: str, data: str, models: list[str], workers: int | None) -> Place:
    """The place that the command line names. Raises SpecError for what it cannot be."""
    if scale not in ("smoke", "paper"):
        raise SpecError(f"--scale {scale!r}: unknown; allowed: smoke, paper; next step: choose one of these")
    if scale == "smoke" and models:
        raise SpecError("--model: smoke scale makes its own tiny models; allowed: --model with --scale paper")
    named = {}
    for text in models:
        name, equals, folder = text.partition("=")
        if name not in MODELS or not equals or not folder:
            raise SpecError(
                f"--model {text!r}: allowed: NAME=FOLDER with a name among {', '.join(MODELS)}; "
                "next step: for example --model t5-large=/models/t5-large"
            )
        named[name] = folder
    return Place("paper" if scale == "paper" else "smoke", data, named, workers)


@contextmanager
def prepared(place: Place) -> Iterator[Place]:
    """The place with its models at hand: at smoke scale tiny ones, made in a folder that is removed at the end."""
    if place.scale == "paper":
        yield place
        return
    from raycl.models.tiny import FAMILIES, save_tiny_model
    from raycl.tasks.catalogue import open_catalogue
    from raycl.tasks.load import load_tasks

    tasks = load_tasks(
        list(open_catalogue().orders["demo"]), DataSpec(source="demo", train_examples=64, test_examples=8)
    )
    texts = [f"{example.prompt} {example.answers[0]}" for task in tasks for example in task.train]
    with tempfile.TemporaryDirectory(prefix="raycl-tiny-") as folder:
        models = {family: str(save_tiny_model(family, Path(folder, family), texts)) for family in FAMILIES}
        yield replace(place, models=models)


@contextmanager
def runner(place: Place, where: Where) -> Iterator[Runner]:
    """What runs a sequence: in this process at smoke scale, through the driver and its workers at paper scale."""
    if place.scale == "paper":
        yield lambda spec: _run_driver(spec, where)
        return
    with tempfile.TemporaryDirectory(prefix="raycl-smoke-") as scratch:
        yield lambda spec: _run_here(spec, where.store or scratch)


def _run_driver(spec: RunSpec, where: Where) -> AccuracyMatrix:
    from raycl.sequence.driver import Options, run_sequence
    from raycl.sequence.names import run_name

    output = str(where.folder / "sequences" / run_name(spec))
    return run_sequence(spec, Options(where.store, where.tracking, "raycl-reproduce", output)).matrix


def _run_here(spec: RunSpec, store: str) -> AccuracyMatrix:
    from raycl.sequence.job import make_job
    from raycl.sequence.local import Stepper, worker_here
    from raycl.state.store import Store

    job = make_job(spec, Store(store))
    stepper = Stepper(job, worker_here(job))
    while not stepper.finished:
        stepper.step()
    return stepper.matrix


def run_all(
    chosen: list[Reproduction], place: Place, part: Part, where: Where, say: Callable[[str], None]
) -> list[Json]:
    """Reproduce several tables one after another; equal sequences are run once. Returns their reports."""
    records = []
    with runner(place, where) as run:
        for one in chosen:
            record = reproduce(one, place, part, run, where, say)
            verdicts = Counter(cell["verdict"] for cell in record["cells"])
            counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
            say(f"{one.id}: {counts}; report: {where.folder / report_name(one.id, place.scale)}.md")
            records.append(record)
    return records


def reproduce(
    one: Reproduction, place: Place, part: Part, run: Runner, where: Where, say: Callable[[str], None]
) -> Json:
    """Run a table's sequences, each different one once; the report is written anew after every one of them.

    `place` comes from `prepared`, `run` from `runner`. Returns the report as it is on disk.
    """
    chosen = part.of(one)
    runs = list(sequences(chosen, place, part.seeds))
    distinct = {identity(run.spec): run.spec for run in runs} if one.trains else {}
    # The base model stays in memory from one sequence to the next as long as it is the same one.
    specs = sorted(distinct.items(), key=lambda item: item[1].model.name)
    matrices: dict[str, AccuracyMatrix] = {}
    for number, (name, spec) in enumerate(specs, start=1):
        say(f"{one.id}: sequence {number}/{len(specs)}: {spec.method.name} on {spec.order}, seed {spec.seed}")
        matrices[name] = run(spec)
        if place.scale == "paper":
            write_report(where.folder, report(one, chosen, place, runs, matrices))
    record = report(one, chosen, place, runs, matrices)
    write_report(where.folder, record)
    return record


def plan_text(one: Reproduction, place: Place, part: Part) -> str:
    """What would run: every different sequence with its key, and what all of it costs at paper scale.

    The key of a sequence is that of its last stage. It takes the model's and the data's files, so it is shown only where
    these are local: a plan never downloads.
    """
    chosen = part.of(one)
    paper = estimate(sequences(chosen, Place("paper"), part.seeds)) if one.trains else None
    lines = [f"# {one.id} at {place.scale} scale", one.title + "."]
    if paper is None:
        return "\n\n".join([*lines, "Nothing is trained: the figures follow from shapes."])
    runs = list(sequences(chosen, place, part.seeds))
    distinct = {identity(run.spec): run for run in runs}

    def columns(name: str) -> str:
        return ", ".join(dict.fromkeys(run.column.label for run in runs if identity(run.spec) == name))

    rows = [
        (run.row.label, columns(name), run.spec.order, run.spec.seed, len(run.spec.tasks), _last_key(run.spec))
        for name, run in distinct.items()
    ]
    cost = (
        f"At paper scale: {paper.sequences} sequences, at most {paper.stages} stage runs, very roughly "
        f"{paper.gpu_hours:,.0f} GPU-hours of an A100 (formula and assumptions: raycl/reproduction/cost.py)."
    )
    titles = ("row", "columns", "order", "seed", "tasks", "key of the last stage")
    return "\n\n".join([*lines, markdown_table(titles, rows), cost])


def _last_key(spec: RunSpec) -> str:
    from raycl.models.fingerprint import fingerprint
    from raycl.models.places import locate
    from raycl.sequence.plan import make_plan
    from raycl.tasks.load import load_tasks

    if locate(spec.model) is None or spec.data.source == "hub":
        return "needs local model and data"
    return make_plan(spec, load_tasks(spec.tasks, spec.data), fingerprint(spec.model)).stages[-1].key[:12]
