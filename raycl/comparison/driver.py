"""The driver of a comparison: plan the grid, run what the store lacks, read everything back, record it. Holds no tensor.

All results are read from the store by the plans' keys. So a killed comparison continues where it stopped, a finished one
answers from the store, and it does not matter which command trained a stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl.analysis.leaderboard import CellResult, Leaderboard, make_leaderboard
from raycl.comparison.grid import GridCell, GridSpec, make_grid
from raycl.comparison.runner import CellJob, CellRunner
from raycl.errors import SpecError
from raycl.files import home
from raycl.report.comparison import ComparisonTerminal, borrowed_tables, cell_record, leaderboard_rows, write_comparison
from raycl.report.tables import number
from raycl.sequence.driver import Driver, Missing, Options, run_name
from raycl.sequence.preflight import check_output
from raycl.sequence.sharing import spread
from raycl.sequence.views import view_of, with_angles
from raycl.spec import Json
from raycl.state.environment import describe_environment
from raycl.state.keys import content_key
from raycl.state.store import Store
from raycl.tasks.orders import order_words
from raycl.tracking.tracker import GroupTracker, Tracker, mlflow_ui_command
from raycl.train.workers import cores

Event = dict[str, Any]
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


def run_comparison(grid: GridSpec, options: Options, how: HowToRun, terminal: ComparisonTerminal) -> ComparisonResult:
    """Run a comparison to its end, or show it if it is finished; a cell that fails is shown as such.

    Raises UserError for what is wrong with all of it: the grid, the store, the folder, every single cell.
    """
    if how.workers not in (None, 0, 1):
        raise SpecError(
            f"--workers {how.workers}: a comparison runs each sequence in one process: 0 (this one) or 1. For a model that "
            "needs several, run the sequences with jobs/sequence.py on the same store first: they are found there"
        )
    name = f"compare-{content_key(grid.model_dump(mode='json'))[:8]}"
    folder = Path(options.output).resolve() if options.output else home() / "comparisons" / name
    tracker = GroupTracker(options.tracking, options.experiment, folder.name)
    store = Store(options.store or str(home() / "store"))
    store.check_usable()
    cells = make_grid(grid, how.gpus)
    check_output(folder)
    return Comparison(grid, cells, store, options, how, tracker, terminal, folder).run()


@dataclass
class Comparison:
    """Runs the cells and turns what the store then holds into tables, files and MLflow."""

    grid: GridSpec
    cells: list[GridCell]
    store: Store
    options: Options
    how: HowToRun
    tracker: GroupTracker
    terminal: ComparisonTerminal
    folder: Path
    trained: int = 0
    recording: bool = True
    """Whether MLflow hears of it; a comparison that is recorded is only shown."""

    def run(self) -> ComparisonResult:
        """Record what is stored, run what is missing, finish."""
        started = time.time()
        missing = {n: lacks for n, cell in enumerate(self.cells) if (lacks := cell.missing(self.store))}
        self._announce(missing)
        memory = self._recorded()
        self.recording = bool(missing) or memory.get("finished") != self._signature()
        if self.recording:
            run_id = self.tracker.start("comparison", self.grid.model_dump(mode="json"), memory.get("run_id"))
            self._remember(run_id, None)
        try:
            for n, cell in enumerate(self.cells):
                if n not in missing and cell.error is None:
                    self._record(cell)
            if missing:
                self._run_missing(missing)
        except BaseException:
            if self.recording:
                self.tracker.finish({}, 0, [], "FAILED")
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
        if not {"per_task", "mtl"} <= {cell.entry.method for cell in self.cells}:
            self.terminal.line("Without the bounds per_task, mtl and sin_lora: add them with --bounds")
        for cell in self.cells:
            if cell.error:
                self.terminal.line(f"{cell.name}: cannot run: {cell.error}")

    # --- running -----------------------------------------------------------------------------------------------------

    def _run_missing(self, missing: dict[int, Missing]) -> None:
        """Run the cells that lack something, on the cluster or here. Ray is imported only if it is needed."""
        jobs = [self._job(n) for n in missing]
        # Cells that share a stage wait for each other, so they do not start at the same time.
        jobs = [jobs[place] for place in spread([self._keys(n) for n in missing])]
        environment = describe_environment(Path(__file__).parents[2])
        if self.how.workers == 0:
            runner = CellRunner(self.store.uri, environment, cores())
            for job in jobs:
                while not self._handle(runner.advance(job)):
                    pass
            return
        from raycl.comparison.pool import run_on_ray

        run_on_ray(jobs, self.store, environment, self.how.most, self._handle)

    def _keys(self, n: int) -> list[str]:
        plan = self.cells[n].plan
        return [stage.key for stage in plan.stages] if plan else []

    def _job(self, n: int) -> CellJob:
        cell = self.cells[n]
        if cell.spec is None or cell.plan is None:
            raise ValueError(f"{cell.name} has no plan")
        return CellJob(n, cell.spec.model_dump(mode="json"), cell.plan.to_json(), cell.tasks)

    def _handle(self, event: Event) -> bool:
        """Show and record what a process reports. Whether the cell has ended."""
        if "waiting" in event:
            self.terminal.line(event["waiting"])
            return False
        cell = self.cells[event["cell"]]
        ended = "error" in event or bool(event["finished"])
        if "error" in event:
            cell.error, cell.trace = event["error"], event["trace"]
            self.terminal.line(f"{cell.name}: failed: {cell.error}")
        else:
            self.trained += event["trained"]
            how = "trained" if event["trained"] else "found in the store"
            stages = len(cell.plan.stages) if cell.plan else 0
            figures = "  ".join(f"{name} {number(event[name])}" for name in ("AP", "FT"))
            self.terminal.line(f"{cell.name}: stage {event['stage']}/{stages} {event['task']} {how}  {figures}")
        if ended and cell.error is None:
            self._record(cell)
        return ended

    # --- recording ---------------------------------------------------------------------------------------------------

    def _record(self, cell: GridCell) -> None:
        """A finished sequence's own MLflow run, matrix and figures, all read from the store."""
        if not self.recording or cell.spec is None or cell.plan is None:
            return
        folder = self.folder / "sequences" / run_name(cell.spec)
        tracker = Tracker(self.options.tracking, self.options.experiment, folder.name, self.tracker.run_id or None)
        with self.terminal.silent() as silent:
            driver = Driver(cell.spec, cell.plan, cell.tasks, self.store, tracker, silent, folder)
            driver.run(Missing(frozenset(), frozenset()))

    def _results(self) -> list[CellResult]:
        return [self._result(cell) for cell in self.cells]

    def _result(self, cell: GridCell) -> CellResult:
        """What the store holds of a cell; one that is not complete there has failed, whatever was reported."""
        entry, view, error = cell.entry, None, cell.error
        if cell.spec is not None and cell.plan is not None:
            status = "failed" if error else None
            view = view_of(cell.spec, cell.tasks, cell.plan, self.store, cell.name, status, angles=False)
            if error is None and cell.missing(self.store):
                error = f"not complete in the store: {view.status}"
        return CellResult(entry.label, entry.method, entry.bound, cell.order, cell.seed, view, error)

    def _finish(self, seconds: float) -> ComparisonResult:
        results = self._results()
        board = make_leaderboard(results)
        borrowed = borrowed_tables(sorted({cell.method for cell in results})) if self.how.borrowed else []
        outputs = write_comparison(self.folder, board, results, self._description(results, seconds), borrowed)
        outputs["report.html"] = self._page(board, results)
        if self.recording:
            done = sum(cell.error is None for cell in results)
            self.tracker.finish(board.metrics() | {"failed": len(results) - done}, done, list(outputs.values()))
            self._remember(self.tracker.run_id, self._signature())
        self.terminal.leaderboard(board)
        self.terminal.failures(results)
        self.terminal.borrowed(borrowed)
        for name, place in (("outputs", self.folder), ("MLflow", mlflow_ui_command(self.tracker.uri))):
            self.terminal.line(f"{name:<8} {place}")
        return ComparisonResult(board, results, outputs, self.trained)

    def _page(self, board: Leaderboard, results: Sequence[CellResult]) -> Path:
        from raycl.report.html import MOST_SEQUENCES, write_html  # draws figures, which takes a second to import

        views = [cell.view for cell in results if cell.view is not None and cell.view.stages]
        views[:MOST_SEQUENCES] = [with_angles(view, self.store) for view in views[:MOST_SEQUENCES]]
        orders = " and ".join(dict.fromkeys(order_words(cell.order) for cell in self.cells))
        title = f"Comparison of {len(board.lines)} methods on {orders}"
        return write_html(self.folder / "report.html", title, views, leaderboard_rows(board))

    def _description(self, results: Sequence[CellResult], seconds: float) -> Json:
        """All that compare.json holds beside the leaderboard."""
        cells = []
        for cell, result in zip(self.cells, results, strict=True):
            known: Json = {"trace": cell.trace, "spec": None, "stage_keys": [], "matrix": None}
            if cell.spec is not None and cell.plan is not None:
                known["spec"] = cell.spec.model_dump(mode="json")
                known["stage_keys"] = [stage.key for stage in cell.plan.stages]
            if result.view is not None:
                known["matrix"] = result.view.matrix.to_json()
            cells.append(cell_record(result, results) | {"error": result.error} | known)
        return {
            "schema": SCHEMA,
            "request": self.grid.model_dump(mode="json"),
            "store": self.store.uri,
            "environment": describe_environment(Path(__file__).parents[2]),
            "seconds": seconds,
            "trained_stages": self.trained,
            "cells": cells,
        }

    # --- memory ------------------------------------------------------------------------------------------------------

    @property
    def _memory(self) -> Path:
        return self.folder / "mlflow_run.json"

    def _recorded(self) -> Json:
        """What an earlier call of the same comparison recorded under the same tracking URI."""
        if not self._memory.is_file():
            return {}
        known = json.loads(self._memory.read_text(encoding="utf-8"))
        return known if known.get("uri") == self.tracker.uri else {}

    def _remember(self, run_id: str, finished: str | None) -> None:
        values = {"uri": self.tracker.uri, "run_id": run_id, "finished": finished}
        self._memory.write_text(json.dumps(values), encoding="utf-8")

    def _signature(self) -> str:
        """Names what is recorded: the cells' results and failures."""
        done = [[cell.name, cell.error, [c.key for c in cell.plan.cells] if cell.plan else []] for cell in self.cells]
        return content_key({"cells": done})
