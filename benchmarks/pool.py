"""Runs sequences of a benchmark, one after another in this process or several at once in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context

from raycl.comparison.grid import GridCell
from raycl.comparison.runner import CellFailed, CellJob, CellRunner
from raycl.sequence.job import SentJob
from raycl.train.workers import cores

OUT_OF_TIME = "not finished in the time given"


def run_cells(
    cells: Sequence[GridCell], processes: int = 1, seconds: float | None = None
) -> Iterator[tuple[GridCell, str | None]]:
    """Run what the store lacks; each cell is yielded when it is done, with the reason if it failed, which costs no other.

    After `seconds` no stage is begun. Processes share the store, and a stage that two sequences need is made once.
    """
    until = None if seconds is None else time.time() + seconds
    jobs = [(cell, SentJob.of(cell.job)) for cell in cells if cell.job is not None and cell.missing()]
    threads = max(1, cores() // processes)
    if processes == 1:
        for number, (cell, job) in enumerate(jobs):
            yield cell, run_one(number, job, threads, until)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        calls = {pool.submit(run_one, number, job, threads, until): cell for number, (cell, job) in enumerate(jobs)}
        for call in as_completed(calls):
            yield calls[call], str(error) if (error := call.exception()) else call.result()


@cache
def _runner(threads: int) -> CellRunner:
    """This process's runner, which keeps the base model from one sequence to the next."""
    return CellRunner(threads)


def run_one(number: int, job: SentJob, threads: int, until: float | None) -> str | None:
    """Advance one sequence to its end, or to `until` (seconds since the epoch); why it failed, if it did."""
    runner = _runner(threads)
    while until is None or time.time() < until:
        event = runner.advance(CellJob(number, job))
        if isinstance(event, CellFailed):
            return event.trace or event.error
        if event.finished:
            return None
    return OUT_OF_TIME
