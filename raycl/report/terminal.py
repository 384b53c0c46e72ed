"""What a sequence shows while it runs: the plan, one bar per stage (or plain lines in a log), the growing matrix.

On a terminal a stage is a live bar with loss and tokens/s; elsewhere it is a few plain lines, so that a log file or
`ray job logs` stays readable.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report.tables import matrix_tables, number, plan_table

WIDE = 160
"""Width of what is no terminal: a file or a job's log."""
LINES_PER_STAGE = 4
"""Progress lines of a stage where there is no live display: one per quarter of its steps."""


def standard_output() -> Console:
    """Standard output: as wide as its terminal, and wide enough for any table where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    return console


class Terminal:
    """Shows the events of one sequence. Use it as a context manager, so that a failure leaves the terminal usable."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` none = standard output."""
        self.console = console or standard_output()
        self._stages = 0
        self._tasks: dict[int, str] = {}
        self._quarter = 0
        self._phase: tuple[int, str] | None = None
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the live display; what comes next may draw a new one."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._bars = None, {}

    # --- what the driver calls ---------------------------------------------------------------------------------------

    def plan(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print what is going to happen: rows with stage, task, key, stored and, where known, train and test."""
        self._stages = len(rows)
        self._tasks = {row["stage"]: row["task"] for row in rows}
        stored = sum(bool(row["stored"]) for row in rows)
        self._line(f"Plan: {len(rows)} stages, {stored} in the store, {len(rows) - stored} to run")
        self.console.print(plan_table(rows))

    def handle(self, event: Mapping[str, Any]) -> None:
        """Show one event of the table in docs/architecture.md; `scores` are shown by `row`."""
        shown = {"stage_start": self._start, "step": self._step, "phase": self._on_phase, "stage_end": self._end}
        show = shown.get(event["event"])
        if show:
            show(event)

    def row(self, matrix: AccuracyMatrix, stage: int) -> None:
        """Print the new row of the accuracy matrix: the scores of the tasks seen, and the measures so far."""
        self.close()
        scores = "  ".join(f"{task} {number(score)}" for task, score in matrix.seen(stage).items())
        self._line(f"{self._name(stage)} scores: {scores}  |  {_measures(matrix, stage)}")

    def summary(self, matrix: AccuracyMatrix, paths: Mapping[str, str], mlflow_command: str) -> None:
        """Print the whole matrix, the measures after the last scored stage, where the files are, how to open MLflow."""
        self.close()
        self._line("")
        self._line("Accuracy matrix (columns: tasks by number)")
        for table in matrix_tables(matrix, self.console.width):
            self.console.print(table)
        if matrix.last_stage:
            self._line(f"After stage {matrix.last_stage}/{len(matrix.tasks)}: {_measures(matrix, matrix.last_stage)}")
        width = max(map(len, [*paths, "MLflow"]))
        for name, path in [*paths.items(), ("MLflow", mlflow_command)]:
            self._line(f"{name:<{width}}  {path}")

    # --- events ------------------------------------------------------------------------------------------------------

    def _start(self, event: Mapping[str, Any]) -> None:
        self.close()
        self._tasks[event["stage"]] = event["task"]
        self._quarter, self._phase = 0, None
        if self.console.is_terminal:
            self._bar("steps", self._name(event["stage"]), event["steps"])
        else:
            self._line(f"{self._name(event['stage'])}: {event['steps']} steps")

    def _step(self, event: Mapping[str, Any]) -> None:
        done, steps = event["step"], event["steps"]
        speed = f"loss {event['loss']:.3f}  {event['tokens_per_s']:,.0f} tokens/s"
        if self.console.is_terminal:
            self._end_phase()
            self._update("steps", self._name(event["stage"]), done, steps, speed)
            return
        quarter = LINES_PER_STAGE * done // max(steps, 1)
        if quarter > self._quarter:
            self._quarter = quarter
            self._line(f"{self._name(event['stage'])}: step {done}/{steps}  {speed}")

    def _on_phase(self, event: Mapping[str, Any]) -> None:
        phase = (event["stage"], event["phase"])
        if self.console.is_terminal:
            if phase != self._phase:
                self._end_phase()
            self._update("phase", f"{self._name(event['stage'])}: {event['phase']}", event["done"], event["total"], "")
            if event["total"] and event["done"] >= event["total"]:
                self._end_phase()
        elif phase != self._phase:
            self._line(f"{self._name(event['stage'])}: {event['phase']}")
        self._phase = phase

    def _end(self, event: Mapping[str, Any]) -> None:
        self.close()
        self._tasks[event["stage"]] = event["task"]
        if event["cached"]:
            self._line(f"{self._name(event['stage'])}: taken from the store ({event['key'][:12]})")
            return
        seconds = {name: value for name, value in event["seconds"].items() if value}
        parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        self._line(
            f"{self._name(event['stage'])}: done in {sum(seconds.values()):.1f} s" + (f" ({parts})" if parts else "")
        )

    # --- drawing -----------------------------------------------------------------------------------------------------

    def _name(self, stage: int) -> str:
        """A stage as `stage 2/4 agnews`."""
        if stage == 0:
            return "untrained model"
        total = f"/{self._stages}" if self._stages else ""
        return f"stage {stage}{total} {self._tasks.get(stage, '')}".rstrip()

    def _line(self, text: str) -> None:
        """One line, never broken by us: in a log it stays one line, a terminal wraps it."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _bar(self, bar: str, name: str, total: int | None) -> None:
        """Add a bar to the live display, which starts with its first bar."""
        if self._progress is None:
            self._progress = Progress(
                TextColumn(
                    "{task.description}", markup=False, table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")
                ),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[speed]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                TimeElapsedColumn(table_column=Column(no_wrap=True)),
                console=self.console,
                transient=True,
                expand=True,
            )
            self._progress.start()
        self._bars[bar] = self._progress.add_task(name, total=total, speed="")

    def _update(self, bar: str, name: str, done: int, total: int | None, speed: str) -> None:
        """Move a bar on, adding it where its first event was missed."""
        if bar not in self._bars:
            self._bar(bar, name, total)
        if self._progress is not None:
            self._progress.update(self._bars[bar], completed=done, total=total, description=name, speed=speed)

    def _end_phase(self) -> None:
        if self._progress is not None and "phase" in self._bars:
            self._progress.remove_task(self._bars.pop("phase"))


def _measures(matrix: AccuracyMatrix, stage: int) -> str:
    """The defined measures after `stage` as `AP 76.9  FT 2.5`."""
    return "  ".join(
        f"{name} {number(value, 2)}" for name, value in matrix.summary(stage).items() if not math.isnan(value)
    )


def print_methods(console: Console | None = None) -> None:
    """The list of all methods, a block each so that it fits any width."""
    from raycl.report.cards import listing

    console = console or standard_output()
    for name, title, paper, trains, growth, task_id, replays in listing():
        console.print(f"[bold]{name}[/bold]  {escape(title)}", soft_wrap=True)
        lines = {
            "paper": paper,
            "trains": trains,
            "state grows by": growth,
            "task id at test": task_id,
            "replays": replays,
        }
        for label, text in lines.items():
            console.print(f"    {label + ':':<17}{escape(text)}", soft_wrap=True)
