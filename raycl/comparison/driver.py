"""The driver of a comparison: plan the grid, run what the store lacks, read everything back, record it. Holds no tensor.

All results are read from the store by the plans' keys. So a killed comparison continues where it stopped, a finished one
answers from the store, and it does not matter which command trained a stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raycl.analysis.leaderboard import CellResult, Leaderboard, make_leaderboard
from raycl.comparison.grid import GridCell, GridSpec, make_grid
from raycl.comparison.runner import CellEvent, CellFailed, CellJob, CellRunner, CellStep, PoolWaiting
from raycl.errors import SpecError
from raycl.events import status_of
from raycl.files import Json
from raycl.report.comparison import (
    ComparisonTerminal,
    borrowed_tables,
    cell_record,
    difference_rows,
    leaderboard_rows,
    write_comparison,
)
from raycl.report.plan import aligned, settings_words
from raycl.report.tables import number
from raycl.sequence.driver import Options, record_sequence
from raycl.sequence.history import Missing
from raycl.sequence.job import SentJob, known_environment
from raycl.sequence.local import StepResult
from raycl.sequence.names import run_name
from raycl.sequence.sharing import spread
from raycl.sequence.views import view_of, with_angles
from raycl.state.keys import content_key
from raycl.state.store import Store
from raycl.tasks.orders import order_title, order_words
from raycl.tracking.memory import RunMemory
from raycl.tracking.records import About
from raycl.tracking.runs import Resumed
from raycl.tracking.tracker import GroupTracker
from raycl.train.workers import cores

SCHEMA = 1


@dataclass(frozen=True)
class HowToRun:
    """What decides where cells run and what is shown, and enters no result."""

    workers: int | None = None
    """0 = in this process, without Ray; else a pool of processes on the cluster."""
    most: int | None = None
    """Most processes of the pool; none = what the cluster has room for."""
    gpus: int = 0
    """GPUs at hand, for the preset `auto`."""
    borrowed: bool = False
    """Whether the papers' figures are shown beside."""


@dataclass
class ComparisonResult:
    """What a finished comparison leaves."""

    board: Leaderboard
    cells: list[CellResult]
    outputs: dict[str, Path]
    trained: int
    """Stages that this call trained."""

    @property
    def failed(self) -> int:
        """Sequences that failed."""
        return sum(cell.error is not None for cell in self.cells)

    @property
    def defects(self) -> int:
        """Those that failed by no fault of the user's."""
        return sum(cell.defect for cell in self.cells)


def run_comparison(
    grid: GridSpec,
    options: Options | None = None,
    how: HowToRun | None = None,
    terminal: ComparisonTerminal | None = None,
) -> ComparisonResult:
    """Run a comparison to its end, or show it if it is finished; a sequence that fails is shown as such.

    `terminal` none = standard output. Raises UserError for what is wrong with all of it: the grid, the store, the folder, or
    every single sequence.
    """
    options, how, terminal = options or Options(), how or HowToRun(), terminal or ComparisonTerminal()
    if how.workers not in (None, 0, 1):
        raise SpecError(
            f"--workers {how.workers}: a comparison runs each sequence in one process: 0 (this one) or 1. For a model that "
            "needs several, run the sequences with `raycl run` on the same store first: they are found there"
        )
    store = options.open_store()
    cells = make_grid(grid, how.gpus, store)
    folder = options.folder("comparisons", f"compare-{content_key(grid.model_dump(mode='json'))[:8]}")
    return Comparison(grid, cells, store, options, how, terminal, folder).run()


@dataclass
class Comparison:
    """Runs the cells and turns what the store then holds into tables, files and MLflow."""

    grid: GridSpec
    cells: list[GridCell]
    store: Store
    options: Options
    how: HowToRun
    terminal: ComparisonTerminal
    folder: Path
    trained: int = 0
    recording: bool = True
    """Whether MLflow hears of it; a comparison that is recorded is only shown."""

    def __post_init__(self) -> None:
        self.memory = RunMemory(self.folder, self.options.tracking)
        resumed = Resumed(run_id=self.memory.run_id, mark=self.memory.mark, part_of="comparison")
        name = f"comparison of {self._what()} · {self.folder.name}"
        opened = self.memory.remember
        self.tracker = GroupTracker(self.options.tracking, self.options.experiment, name, resumed, opened)

    def _what(self) -> str:
        """What is compared, in words."""
        labels = ", ".join(dict.fromkeys(cell.entry.label for cell in self.cells))
        orders = " and ".join(dict.fromkeys(order_title(cell.order) for cell in self.cells))
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in self.cells))
        return f"{labels} on {orders}, seeds {seeds}"

    def run(self) -> ComparisonResult:
        """Record what is stored, run what is missing, finish."""
        started = time.time()
        missing = {n: lacks for n, cell in enumerate(self.cells) if (lacks := cell.missing())}
        self._announce(missing)
        wanted = bool(missing) or self.memory.finished != self._signature()
        self.recording = wanted and self.memory.claim()
        if self.recording:
            note = f"Comparison of {self._what()}. Output: {self.folder}. Store: {self.store.uri}."
            about = About(note, known_environment())
            self.tracker.start(self.grid.model_dump(mode="json"), about)
        try:
            for n, cell in enumerate(self.cells):
                if n not in missing and cell.error is None:
                    self._record(cell)
            if missing:
                self._run_missing(missing)
        except BaseException as error:
            if self.recording:
                self.tracker.finish({}, 0, [], status_of(error))
            raise
        return self._finish(time.time() - started)

    def _announce(self, missing: dict[int, Missing]) -> None:
        failed = sum(cell.error is not None for cell in self.cells)
        stored = len(self.cells) - len(missing) - failed
        labels = len({cell.entry.label for cell in self.cells})
        pairs = len({(cell.order, cell.seed) for cell in self.cells})
        words = f", {failed} that cannot run" if failed else ""
        self.terminal.line(
            f"Comparison: {labels} methods on {pairs} pairs of order and seed: {len(self.cells)} sequences, {stored} in the "
            f"store, {len(missing)} to run{words}"
        )
        spec = next((cell.job.spec for cell in self.cells if cell.job), None)
        known = settings_words(spec.model_dump(mode="json", include={"model"})) if spec else {}
        for line in aligned({"methods": self._what(), **known, "store": self.store.uri, "output": str(self.folder)}):
            self.terminal.line(line)
        if not {"per_task", "mtl"} <= {cell.entry.method for cell in self.cells}:
            self.terminal.line("Without the bounds per_task, mtl and sin_lora: add them with --bounds")
        for cell in self.cells:
            if cell.error:
                self.terminal.line(f"{cell.name}: cannot run: {cell.error}")

    # --- running -----------------------------------------------------------------------------------------------------

    def _run_missing(self, missing: dict[int, Missing]) -> None:
        """Run the cells that lack something, on the cluster or here. Ray is imported only if it is needed."""
        jobs = [CellJob(n, SentJob.of(job)) for n in missing if (job := self.cells[n].job)]
        # Cells that share a stage wait for each other, so they do not start at the same time.
        keys = [[stage.key for stage in one.job.plan.stages] for one in jobs]
        jobs = [jobs[place] for place in spread(keys)]
        if self.how.workers == 0:
            runner = CellRunner(cores())
            for job in jobs:
                while not self._handle(runner.advance(job)):
                    pass
            return
        from raycl.comparison.pool import run_on_ray

        run_on_ray(jobs, self.how.most, self._handle)

    def _handle(self, event: CellEvent) -> bool:
        """Show and record what a process reports. Whether the sequence has ended."""
        match event:
            case PoolWaiting():
                self.terminal.line(event.message)
                return False
            case CellFailed():
                cell = self.cells[event.number]
                cell.error, cell.trace = event.error, event.trace
                self.terminal.line(f"{cell.name}: failed: {cell.error}")
                return True
            case CellStep():
                self._show_step(self.cells[event.number], event.step)
                if event.finished:
                    self._record(self.cells[event.number])
                return event.finished

    def _show_step(self, cell: GridCell, step: StepResult) -> None:
        """A line about a stage that is done."""
        self.trained += step.trained
        how = "trained" if step.trained else "found in the store"
        stages = len(cell.job.plan.stages) if cell.job else 0
        figures = "  ".join(f"{name} {number(step.measures[name])}" for name in ("AP", "FT"))
        self.terminal.line(f"{cell.name}: stage {step.stage}/{stages} {step.task} {how}  {figures}")

    # --- recording ---------------------------------------------------------------------------------------------------

    def _record(self, cell: GridCell) -> None:
        """A finished sequence's own MLflow run, matrix and figures, all read from the store."""
        if self.recording and cell.job is not None:
            folder = self.folder / "sequences" / run_name(cell.job.spec)
            above = Resumed(self.tracker.run_id or None, part_of="comparison")
            record_sequence(cell.job, self.options, folder, cell.entry.label, above)

    def _results(self) -> list[CellResult]:
        return [self._result(cell) for cell in self.cells]

    def _result(self, cell: GridCell) -> CellResult:
        """What the store holds of a cell; one that is not complete there has failed, whatever was reported."""
        entry, view, error = cell.entry, None, cell.error
        if cell.job is not None:
            view = view_of(cell.job, cell.name, "failed" if error else None, angles=False, line=entry.label)
            if error is None and cell.missing():
                error = f"not complete in the store: {view.status}"
        defect = cell.trace is not None
        order = order_words(cell.order)
        return CellResult(entry.label, entry.method, entry.bound, order, cell.seed, view, error, defect)

    def _finish(self, seconds: float) -> ComparisonResult:
        results = self._results()
        board = make_leaderboard(results)
        borrowed = borrowed_tables(sorted({cell.method for cell in results})) if self.how.borrowed else []
        outputs = write_comparison(self.folder, board, results, self._description(results, seconds), borrowed)
        outputs["report.html"] = self._page(board, results)
        if self.recording:
            done = sum(cell.error is None for cell in results)
            self.tracker.finish(board.metrics() | {"failed": len(results) - done}, done, list(outputs.values()))
            if self.tracker.recorded:
                self.memory.remember(self.tracker.run_id, self._signature())
            self.memory.release()
        self.terminal.leaderboard(board)
        self.terminal.failures(results)
        self.terminal.borrowed(borrowed)
        for line in aligned({"outputs": str(self.folder), **self.tracker.places}):
            self.terminal.line(line)
        return ComparisonResult(board, results, outputs, self.trained)

    def _page(self, board: Leaderboard, results: Sequence[CellResult]) -> Path:
        from raycl.report.html import MOST_SEQUENCES, write_html  # draws figures, which takes a second to import

        views = [cell.view for cell in results if cell.view is not None and cell.view.stages]
        views[:MOST_SEQUENCES] = [with_angles(view, self.store) for view in views[:MOST_SEQUENCES]]
        orders = " and ".join(dict.fromkeys(order_title(cell.order) for cell in self.cells))
        title = f"Comparison of {len(board.lines)} methods on {orders}"
        rows, differences = leaderboard_rows(board), difference_rows(board)
        return write_html(self.folder / "report.html", title, views, rows, differences=differences)

    def _description(self, results: Sequence[CellResult], seconds: float) -> Json:
        """All that compare.json holds beside the leaderboard."""
        cells = []
        for cell, result in zip(self.cells, results, strict=True):
            known: Json = {"trace": cell.trace, "spec": None, "stage_keys": [], "matrix": None}
            if cell.job is not None:
                known["spec"] = cell.job.spec.model_dump(mode="json")
                known["stage_keys"] = [stage.key for stage in cell.job.plan.stages]
            if result.view is not None:
                known["matrix"] = result.view.matrix.to_json()
            cells.append(cell_record(result, results) | {"error": result.error} | known)
        return {
            "schema": SCHEMA,
            "request": self.grid.model_dump(mode="json"),
            "store": self.store.uri,
            "environment": known_environment(),
            "seconds": seconds,
            "trained_stages": self.trained,
            "cells": cells,
        }

    def _signature(self) -> str:
        """Names what is recorded: the cells' results and failures."""
        done = [
            [cell.name, cell.error, [c.key for c in cell.job.plan.cells] if cell.job else []] for cell in self.cells
        ]
        return content_key({"cells": done})
