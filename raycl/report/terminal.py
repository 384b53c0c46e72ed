"""What a sequence shows while it runs: the plan, one bar per stage (or plain lines in a log), the growing matrix.

On a terminal whatever runs (training, a data pass, an evaluation) is a live bar with the time that is left, above one over
all stages; elsewhere it is a few plain lines, so that a log file or `ray job logs` stays readable.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.routing import measures
from raycl.events import (
    START_UP,
    Adapted,
    Event,
    Phase,
    Retry,
    Routing,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageStart,
    Step,
    work_seconds,
)
from raycl.report.pace import Pace, duration
from raycl.report.plan import aligned, plan_lines
from raycl.report.tables import matrix_tables, number, plan_table

LOG_WIDTH = 160
"""Columns of what is no terminal: a file or a job's log."""
ROUNDED = "answers in bf16: {} may be others in another eval.batch_size or number of workers; in fp32 none is"
"""What is said beside the scores of a run in bf16, whose rounding depends on the shapes of its batches."""
PROGRESS_LINES_PER_STAGE = 4
"""Progress lines of a stage where there is no live display: one per quarter of its steps."""


def standard_output() -> Console:
    """Standard output: as wide as its terminal, and wide enough for any table where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


class TimeLeft(ProgressColumn):
    """How long a bar still takes, from its speed; how long it has taken where that cannot be told.

    A bar that knows better says so in its own words, and has none here.
    """

    def render(self, task: Task) -> Text:
        """`12 s left`, or `for 3 s`."""
        if task.fields["speed"].endswith(" left"):
            return Text("")
        left = task.time_remaining
        return Text(f"for {duration(task.elapsed or 0)}" if left is None or task.finished else f"{duration(left)} left")


class Terminal:
    """A listener that shows one sequence; its end, however it comes, leaves the terminal usable."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` none = standard output."""
        self.console = console or standard_output()
        self._stages = 0
        self._rounded, self._watchful, self._scored_apart = False, True, False
        self._doubtful: float | None = None
        self._tasks: dict[int, str] = {}
        self._quarters: dict[int, int] = {}
        """Stage -> the quarter of its steps that was last shown; groups of workers train several at the same time."""
        self._phase: tuple[int, str] | None = None
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._pace = Pace(0)
        self._adapters: Mapping[str, int] = {}
        """As they were told last: every group of workers tells them."""

    def close(self) -> None:
        """End the live display; what comes next may draw a new one."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._bars = None, {}

    def handle(self, event: Event) -> None:
        """Show one event; single scores are shown with their row, and what is odd about them at once."""
        shown: dict[type, Callable[[Any], None]] = {
            SequenceStart: self._plan,
            Adapted: self._adapted,
            StageStart: self._start,
            Step: self._step,
            Phase: self._on_phase,
            Retry: self._retry,
            StageEnd: self._end,
            Scored: self._signs,
            RowDone: self._row,
            SequenceEnd: self._summary,
        }
        shown[type(event)](event)

    # --- events ------------------------------------------------------------------------------------------------------

    def _plan(self, event: SequenceStart) -> None:
        """What is going to happen."""
        self._stages = len(event.stages)
        self._watchful = event.spec.get("train", {}).get("health") != "continue"
        self._scored_apart = bool(event.spec.get("eval", {}).get("workers"))
        self._rounded = event.spec.get("model", {}).get("precision") == "bf16"
        self._tasks = {stage.stage: stage.task for stage in event.stages}
        stored = sum(stage.stored for stage in event.stages)
        self._pace = Pace(len(event.stages) - stored)
        self._line(f"Plan: {len(event.stages)} stages, {stored} in the store, {len(event.stages) - stored} to run")
        for line in plan_lines(event):
            self._line(line)
        self.console.print(plan_table(event.stages))

    def _adapted(self, event: Adapted) -> None:
        """Which modules of the model get adapters, once."""
        if event.paths == self._adapters:
            return
        self._adapters = event.paths
        named = ", ".join(f"{path} ({count})" if count > 1 else path for path, count in event.paths.items())
        self._line(f"adapters on {sum(event.paths.values())} modules: {named}")

    def _retry(self, event: Retry) -> None:
        """The workers have failed: what was shown of their stage is void."""
        self.close()
        self._line(
            f"the worker group failed ({event.reason}) and is started again, try {event.attempt} of {event.most}; "
            "finished stages are in the store"
        )

    def _signs(self, event: Scored) -> None:
        """What is odd about a score."""
        self._look(event.stage, event.task, event.health)

    def _look(self, stage: int, task: str, signs: Sequence[str]) -> None:
        for sign in signs if self._watchful else ():
            self._line(f"{self._name(stage)}: look at {task}: {sign}")

    def _row(self, event: RowDone) -> None:
        """The new row of the accuracy matrix: the scores of the tasks seen, and the measures so far."""
        self.close()
        self._doubtful = event.doubtful
        scores = "  ".join(f"{task} {number(score)}" for task, score in event.scores.items())
        self._line(f"{self._name(event.stage)} scores: {scores}  |  {_measures(event.measures)}")
        for task, metrics in event.further.items():
            words = "  ".join(f"{name} {number(value)}" for name, value in metrics.items())
            self._line(f"{self._name(event.stage)} also: {task}  {words}")
        if event.routing is not None:
            self._line(f"{self._name(event.stage)} routes: {_routes(event.routing)}")
        if self._pace.stage_done(event.stage) and self._pace.left:
            self._line(f"{self._pace.done} of {self._pace.total} stages run{self._pace.words}")

    def _summary(self, event: SequenceEnd) -> None:
        """Of a sequence that came to its end: the whole matrix, the measures, where the files are."""
        self.close()
        if event.status != "FINISHED":
            return
        matrix = AccuracyMatrix.from_json(event.matrix)
        self._line("")
        self._line("Accuracy matrix (columns: tasks by number)")
        for table in matrix_tables(matrix, self.console.width):
            self.console.print(table)
        if last := matrix.last_stage:
            self._line(f"After stage {last}/{len(matrix.tasks)}: {_measures(matrix.summary(last))}")
            if self._rounded:
                self._line(
                    ROUNDED.format(
                        "a few" if self._doubtful is None else f"up to {self._doubtful:.1f} % of the last row"
                    )
                )
        if self._scored_apart and (after := event.facts.get("seconds_after_training")) is not None:
            self._line(
                f"critical path: {duration(event.facts['seconds'])}, {duration(after)} of it after the last training"
            )
        for line in aligned(event.places):
            self._line(line)

    def _start(self, event: StageStart) -> None:
        self.close()
        self._tasks[event.stage] = event.task
        self._quarters[event.stage], self._phase = 0, None
        self._pace.begin(event.stage)
        if self.console.is_terminal:
            self._bar(f"steps {event.stage}", self._name(event.stage), event.steps)
        else:
            self._line(f"{self._name(event.stage)}: {event.steps} steps")

    def _step(self, event: Step) -> None:
        speed = f"loss {event.loss:.3f}  {event.tokens_per_s:,.0f} tokens/s"
        self._pace.within(event.stage, event.step / max(event.steps, 1))
        if self.console.is_terminal:
            self._end_phase()
            self._update(f"steps {event.stage}", self._name(event.stage), event.step, event.steps, speed)
            self._all_stages()
            return
        quarter = PROGRESS_LINES_PER_STAGE * event.step // max(event.steps, 1)
        if quarter > self._quarters.get(event.stage, 0):
            self._quarters[event.stage] = quarter
            self._line(f"{self._name(event.stage)}: step {event.step}/{event.steps}  {speed}")

    def _on_phase(self, event: Phase) -> None:
        phase, text = (event.stage, event.phase), f"{self._name(event.stage)}: {event.phase}"
        if self.console.is_terminal:
            if phase != self._phase:
                self._end_phase()
            self._update("phase", text, event.done, event.total, "")
            self._all_stages()
            if event.total and event.done >= event.total:
                self._end_phase()
        elif phase != self._phase:
            self._line(text)
        self._phase = phase

    def _end(self, event: StageEnd) -> None:
        self.close()
        self._tasks[event.stage] = event.task
        if event.cached:
            self._line(f"{self._name(event.stage)}: taken from the store ({event.key[:12]})")
            self._look(event.stage, event.task, event.health)
            return
        parts = [f"{name} {value:.1f}" for name, value in event.seconds.items() if value and name != START_UP]
        start = event.seconds.get(START_UP)
        self._line(
            f"{self._name(event.stage)}: done in {work_seconds(event.seconds):.1f} s"
            + (f" ({', '.join(parts)})" if parts else "")
            + (f", after a start-up of {start:.1f} s" if start else "")
        )
        self._look(event.stage, event.task, event.health)

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
                TimeLeft(table_column=Column(no_wrap=True)),
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

    def _all_stages(self) -> None:
        """Draw the bar over all stages to run, with its own words for the time left: steps say more than stages."""
        if self._pace.total:
            self._update("stages", "all stages", self._pace.done, self._pace.total, self._pace.words.lstrip(", "))

    def _end_phase(self) -> None:
        if self._progress is not None and "phase" in self._bars:
            self._progress.remove_task(self._bars.pop("phase"))


def _measures(measures: Mapping[str, float]) -> str:
    """The defined measures as `AP 76.9  FT 2.5`."""
    return "  ".join(f"{name} {number(value, 2)}" for name, value in measures.items() if not math.isnan(value))


def _routes(routing: Routing) -> str:
    """How well inputs found their task: `98.2 % right, 1.2 % changed, AP 70.1 with all of them right`."""
    found = measures(routing)
    words = [f"{number(found['routing/accuracy'])} % right"]
    if any(routing.unknown):
        words.append(f"{number(found['routing/unknown'])} % like no task, answered by the base model")
    if not math.isnan(routing.changed):
        words.append(f"{number(found['routing/changed'])} % changed since the stage before")
    if not math.isnan(routing.oracle_ap):
        words.append(f"AP {number(routing.oracle_ap, 2)} with all of them right")
    return ", ".join(words)
