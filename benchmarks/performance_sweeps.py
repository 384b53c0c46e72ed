"""The rows of benchmarks/performance.py on sweeps: a tree with one store for all sequences and with one for each; siblings
packed and one by one."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from performance_cell import Bar, Cell, Figure
from performance_runs import write_tasks

import raycl
from raycl.models.tiny import save_tiny_model
from raycl.sequence.driver import plan_job
from raycl.sequence.job import SequenceJob
from raycl.sequence.local import keep_model, worker_here
from raycl.train.pack import Pack
from raycl.train.stage import StageRun

TASKS = 5
LAMBDAS = (1e-5, 1e-3, 1e-2)
"""AM-LoRA's lambda at every task, as tune_spaces/am_lora_tree.py has it: 243 sequences."""
WIDER = (*LAMBDAS, 1e-1)
"""What a second study asks at every task: 1,024 sequences, of which 243 are the first one's."""
THREADS = 1
ROUNDS = 3
"""Of siblings, packed and one by one in turn."""


def tree() -> Figure:
    """Stage runs without sharing over those with it; both are trained, and the last states compared byte by byte."""
    with tempfile.TemporaryDirectory(prefix="raycl-performance-") as name:
        folder = Path(name)
        stream = write_stream(folder)
        points = list(itertools.product(LAMBDAS, repeat=TASKS))
        shared = trained(points, stream, lambda number: folder / "shared")
        apart = trained(points, stream, lambda number: folder / f"store{number}")
        alike = sum(one == two for one, two in zip(shared.leaves, apart.leaves, strict=True))
        note = (
            f"{apart.stages:,} stage runs against {shared.stages} for {len(points)} sequences; wall "
            f"{apart.seconds:.0f} s against {shared.seconds:.0f} s, {apart.seconds / shared.seconds:.2f}x, CPU "
            f"{apart.busy / shared.busy:.2f}x; {alike} of {len(points)} last states byte-identical; tiny model"
        )
        details = {"note": note, "shared": vars(shared), "apart": vars(apart)}
        for one in (details["shared"], details["apart"]):
            one.pop("leaves")
        return Figure(apart.stages / shared.stages, threads=THREADS, details=details)


def second_study() -> Figure:
    """Stage runs of a wider study without sharing, over those that it trains where a first one has filled the store."""
    with tempfile.TemporaryDirectory(prefix="raycl-performance-") as name:
        folder = Path(name)
        stream = write_stream(folder)
        first, second = (
            trained(list(itertools.product(values, repeat=TASKS)), stream, lambda number: folder / "shared")
            for values in (LAMBDAS, WIDER)
        )
        flat = TASKS * len(WIDER) ** TASKS
        note = (
            f"{flat:,} stage runs against {second.stages:,} for {len(WIDER) ** TASKS:,} sequences of {len(WIDER)} lambdas, "
            f"after {first.stages} for those of {len(LAMBDAS)}; tiny model"
        )
        return Figure(flat / second.stages, threads=THREADS, details={"note": note})


class Trained:
    """What training all points took."""

    def __init__(self) -> None:
        self.stages, self.seconds, self.busy = 0, 0.0, 0.0
        self.leaves: list[str] = []
        """Digest of the last state of each point."""


def trained(points: list[tuple[float, ...]], stream: str, store: Callable[[int], Path]) -> Trained:
    """Train the sequences of all points one after the other; `store` is the folder of each."""
    found, wall, busy = Trained(), time.perf_counter(), time.process_time()
    for number, point in enumerate(points):
        job = job_of(point, stream, store(number))
        found.stages += sum(not job.store.has(stage.key) for stage in job.plan.stages)
        worker_here(job, THREADS).run()
        found.leaves.append(job.store.manifest(job.plan.stages[-1].key).digest)
    found.seconds, found.busy = time.perf_counter() - wall, time.process_time() - busy
    keep_model.cache_clear()
    return found


def job_of(point: tuple[float, ...], stream: str, store: Path) -> SequenceJob:
    """The sequence of a point."""
    fields: dict[str, Any] = {
        "data": {"stream": stream, "train_examples": 8, "test_examples": 2, "max_source_tokens": 16},
        "model": {"name": str(Path(stream).parent / "model"), "precision": "fp32"},
        "method": {"name": "am_lora", "rank": 2, "l1": list(point)},
        "eval": {"forward": False},
        "workers": 0,
    }
    return plan_job(raycl.resolve("laptop", [fields]), raycl.Options(store=str(store), tracking="off"))


def packed(rows: int) -> Figure:
    """Seconds of four siblings one by one over those of the four packed: stages of 64 examples, `rows` a step."""
    with tempfile.TemporaryDirectory(prefix="raycl-performance-") as name:
        write_tasks(Path(name), 64, 2, 1)
        alone, together, precision = [], [], ""
        for _ in range(ROUNDS):
            for runs, seconds in ((one_by_one, alone), (at_once, together)):
                stages = siblings(Path(name), rows)
                began = time.process_time()
                runs(stages)
                seconds.append(time.process_time() - began)
                precision = stages[0].spec.model.precision
        ratios = [one / other for one, other in zip(alone, together, strict=True)]
        keep_model.cache_clear()
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        note = (
            f"{told} x; {median(alone):.0f} s against {median(together):.0f} s, CPU seconds; sin_lora, packaged model"
        )
        return Figure(median(ratios), precision, THREADS, {"note": note, "alone": alone, "together": together})


def one_by_one(runs: list[StageRun]) -> None:
    """One by one."""
    for run in runs:
        run.run()


def at_once(runs: list[StageRun]) -> None:
    """Packed."""
    Pack(runs).run()


def siblings(folder: Path, rows: int) -> list[StageRun]:
    """The first stages of four sequences that differ in their learning rate, not run yet."""
    found = []
    for lr in (1e-4, 3e-4, 1e-3, 3e-3):
        fields: dict[str, Any] = {
            "data": {"stream": str(folder / "tasks.yaml"), "train_examples": None, "max_source_tokens": 64},
            "method": {"name": "sin_lora"},
            "train": {"lr": lr, "epochs": 1, "batch_size": rows},
            "workers": 0,
        }
        job = plan_job(raycl.resolve("laptop", [fields]), raycl.Options(store=str(folder / "store"), tracking="off"))
        worker, stage = worker_here(job, THREADS), job.plan.stages[0]
        found.append(worker.begin(stage, job.store.lease(stage.key)).run)
    return found


def write_stream(folder: Path) -> str:
    """Small tasks, as a stream, and beside it the tiny model that is trained on them."""
    save_tiny_model("llama", folder / "model", ["red green blue one two three ticket order late price thanks"] * 9)
    write_tasks(folder, 8, 2, TASKS)
    return str(folder / "tasks.yaml")


SWEEP_CELLS = (
    Cell(
        "sweep-tree",
        "stage runs of a tree of lambdas without sharing, over those with it",
        Bar(3.0, "x", "least"),
        tree,
    ),
    Cell(
        "sweep-second-study",
        "stage runs of a second, wider study without sharing, over those it trains with the first one's store",
        Bar(5.0, "x", "least"),
        second_study,
    ),
    *(
        Cell(
            f"packed-{rows}",
            f"four siblings one by one over the four packed, batches of {rows}",
            Bar(1.3, "x", "least"),
            partial(packed, rows),
        )
        for rows in (8, 2)
    ),
)
