"""What a sequence prints: plain lines in a log, a live display on a terminal, no failure at any width."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import (
    Adapted,
    Phase,
    PlannedStage,
    Retry,
    Routing,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageStart,
    Status,
    Step,
)
from raycl.report.terminal import Terminal, TimeLeft

SECONDS = {"train": 10.0, "pass": 2.0, "evaluation": 0.0, "other": 1.0}


def run(console: Console, matrix: AccuracyMatrix, plan: tuple[PlannedStage, ...]) -> str:
    """The output of a sequence whose stage 2 is stored."""
    terminal = Terminal(console)
    terminal.handle(SequenceStart({}, plan))
    terminal.handle(Phase(0, "evaluation", 1, 4))
    for stage, task in enumerate(matrix.tasks, start=1):
        if stage != 2:
            train(terminal, stage, task)
        terminal.handle(StageEnd(stage, task, "ab" * 32, stage == 2, SECONDS, {}))
        for done in range(3):
            terminal.handle(Phase(stage, "evaluation", done, 2))
        terminal.handle(Scored(stage, task, "exact_match", 1.0, 1, 0.1, True))
        terminal.handle(RowDone(stage, matrix.seen(stage), matrix.summary(stage)))
    places = {"folder": "/some/where", "store": "s3://bucket/x", "MLflow": "mlflow ui --port 5000"}
    terminal.handle(SequenceEnd("FINISHED", matrix.to_json(), {}, places))
    return console.file.getvalue()


def train(terminal: Terminal, stage: int, task: str, steps: int = 40) -> None:
    """The events of a training with a log line every step."""
    terminal.handle(StageStart(stage, task, steps))
    terminal.handle(Phase(stage, "data pass", 1, 4))
    for number in range(1, steps + 1):
        terminal.handle(Step(stage, number, steps, 0.1, 1.2345, 1234.5))


def test_a_log_gets_a_few_plain_lines_per_stage(four: AccuracyMatrix, plan: tuple[PlannedStage, ...]) -> None:
    lines = run(Console(file=io.StringIO(), width=80), four, plan).splitlines()
    assert lines[0] == "Plan: 4 stages, 1 in the store, 3 to run"
    assert [line for line in lines if line.startswith("stage 1/4 dbpedia")] == [
        "stage 1/4 dbpedia: 40 steps",
        "stage 1/4 dbpedia: data pass",
        *(f"stage 1/4 dbpedia: step {n}/40  loss 1.234  1,234 tokens/s" for n in (10, 20, 30, 40)),
        "stage 1/4 dbpedia: done in 13.0 s (train 10.0, pass 2.0, other 1.0)",
        "stage 1/4 dbpedia: evaluation",
        "stage 1/4 dbpedia scores: dbpedia 90.0  |  AP 90.00",
    ]
    assert "stage 2/4 amazon: taken from the store (abababababab)" in lines
    assert "\x1b" not in "".join(lines)


def test_the_summary_has_matrix_measures_paths_and_command(
    four: AccuracyMatrix, plan: tuple[PlannedStage, ...]
) -> None:
    lines = run(Console(file=io.StringIO(), width=80), four, plan).splitlines()
    assert lines[-4:] == [
        "After stage 4/4: AP 84.00  FT 4.00  BWT -4.00  FWT 10.00",
        "folder  /some/where",
        "store   s3://bucket/x",
        "MLflow  mlflow ui --port 5000",
    ]


def test_a_terminal_gets_a_bar_with_loss_and_speed(four: AccuracyMatrix, plan: tuple[PlannedStage, ...]) -> None:
    text = run(Console(file=io.StringIO(), width=110, force_terminal=True), four, plan)
    assert "loss 1.234  1,234 tokens/s" in text
    assert "stage 1/4 dbpedia: done in 13.0 s" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor comes back"


def test_the_plan_names_what_runs_and_where(plan: tuple[PlannedStage, ...]) -> None:
    """Method, model, learning rate, device, store and output, before anything starts."""
    spec = {
        "method": {"name": "gain_lora", "over": "o_lora"},
        "model": {"name": "packaged", "precision": "bf16"},
        "train": {"lr": [1e-3, 5e-4, 5e-4, 1e-4]},
        "seed": 3,
    }
    console = Console(file=io.StringIO(), width=80)
    places = {"device": "CPU, 2 Ray Train workers", "store": "s3://bucket/x", "output": "/some/where"}
    Terminal(console).handle(SequenceStart(spec, plan, places))
    assert console.file.getvalue().splitlines()[:7] == [
        "Plan: 4 stages, 1 in the store, 3 to run",
        "method         gain_lora over o_lora, seed 3",
        "model          packaged, bf16",
        "learning rate  0.001, 0.0005, 0.0005, 0.0001 (by stage)",
        "device         CPU, 2 Ray Train workers",
        "store          s3://bucket/x",
        "output         /some/where",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_group_that_is_started_again_is_one_line(terminal: bool, four: AccuracyMatrix) -> None:
    """With the reason; the stage's bar is gone, and the cursor comes back."""
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    shown = Terminal(console)
    train(shown, 1, "reviews")
    shown.handle(Retry("ActorDiedError: The actor died unexpectedly", 1, 2))
    train(shown, 1, "reviews")
    shown.handle(SequenceEnd("KILLED", four.to_json()))
    text = console.file.getvalue()
    words = "the worker group failed (ActorDiedError: The actor died unexpectedly) and is started again, try 1 of 2"
    assert text.count(words) == 1
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")


def test_a_log_says_how_far_it_is_after_each_stage_that_was_run(
    four: AccuracyMatrix, plan: tuple[PlannedStage, ...]
) -> None:
    """Stored stages are not among those to run, and after the last one there is nothing to say."""
    lines = run(Console(file=io.StringIO(), width=80), four, plan).splitlines()
    found = [line.partition(",")[0] for line in lines if "stages run" in line]
    assert found == ["1 of 3 stages run", "2 of 3 stages run"]


def test_a_terminal_shows_all_stages_above_the_one_that_runs(
    four: AccuracyMatrix, plan: tuple[PlannedStage, ...]
) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True)
    text = run(console, four, plan)
    for done in range(3):
        assert re.search(rf"all stages.*{done}/3", text)


def test_a_routed_row_says_how_it_is_routed(four: AccuracyMatrix) -> None:
    """Mean accuracy over tasks; what was compared or scored, and inputs like no task where there are any."""
    console = Console(file=io.StringIO(), width=160)
    shown = Terminal(console)
    first = Routing(four.tasks[:1], ((4,),), (0,), math.nan, math.nan)
    second = Routing(four.tasks[:2], ((3, 1), (0, 1)), (0, 1), 0.5, 70.0)
    for stage, routing in ((1, first), (2, second)):
        shown.handle(RowDone(stage, four.seen(stage), four.summary(stage), routing))
    lines = [line for line in console.file.getvalue().splitlines() if "routes: " in line]
    assert [line.split("routes: ")[1] for line in lines] == [
        "100.0 % right",
        "62.5 % right, 16.7 % like no task, answered by the base model, 50.0 % changed since the stage before, "
        "AP 70.00 with all of them right",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_stages_that_are_trained_side_by_side_keep_their_lines_apart(four: AccuracyMatrix, terminal: bool) -> None:
    """Steps of two stages in turn: a line per quarter of each, or a bar for each."""
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    shown = Terminal(console)
    for stage in (1, 2):
        shown.handle(StageStart(stage, four.tasks[stage - 1], 8))
    for number in range(1, 9):
        for stage in (1, 2):
            shown.handle(Step(stage, number, 8, 0.1, 1.2345, 1234.5))
    shown.close()
    text = console.file.getvalue()
    for stage in (1, 2):
        name = f"stage {stage} {four.tasks[stage - 1]}"
        lines = [line for line in text.splitlines() if f"{name}: step" in line]
        assert terminal or [line.split("step ")[1].split(" ")[0] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
        assert name in text


def test_the_adapted_modules_are_one_line() -> None:
    """Modules that differ in their layer's number only stand once, with how many there are; a second group says the same."""
    console = Console(file=io.StringIO(), width=80)
    terminal = Terminal(console)
    for stage in (1, 2):
        terminal.handle(Adapted(stage, {"layers.*.q_proj": 12, "head": 1}))
    assert console.file.getvalue() == "adapters on 13 modules: layers.*.q_proj (12), head\n"


def test_a_start_up_is_told_apart_from_the_stage() -> None:
    console = Console(file=io.StringIO(), width=80)
    Terminal(console).handle(StageEnd(1, "roget", "ab" * 32, False, {"train": 9.5, "start_up": 288.25}, {}))
    assert console.file.getvalue() == "stage 1 roget: done in 9.5 s (train 9.5), after a start-up of 288.2 s\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [1, 8, 20, 40])
def test_narrow_terminals(fifteen: AccuracyMatrix, plan: tuple[PlannedStage, ...], width: int, terminal: bool) -> None:
    assert run(Console(file=io.StringIO(), width=width, force_terminal=terminal), fifteen, plan)


def test_names_with_markup_are_shown_as_they_are() -> None:
    matrix = AccuracyMatrix(["[red]a[/b]"])
    matrix.set(1, "[red]a[/b]", 50.0)
    plan = (PlannedStage(1, "[red]a[/b]", "ab" * 32, stored=False, train=1, test=1),)
    for terminal in (True, False):
        text = run(Console(file=io.StringIO(), width=120, force_terminal=terminal), matrix, plan)
        assert "stage 1/1 [red]a[/b]" in text
        assert "to run" in text


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_failure_inside_a_stage_leaves_the_cursor_visible(four: AccuracyMatrix, status: Status) -> None:
    """And nothing is summed up."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    terminal = Terminal(console)
    train(terminal, 1, "reviews")
    terminal.handle(SequenceEnd(status, four.to_json()))
    text = console.file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert "Accuracy matrix" not in text


def test_a_bar_says_what_is_left_as_soon_as_it_can_be_told() -> None:
    """Two units in four seconds: the other six take twelve. Before that, and at the end, how long it has taken."""
    clock = [0.0]
    bars, column = Progress(get_time=lambda: clock[0], console=Console(file=io.StringIO())), TimeLeft()
    bars.add_task("a data pass", total=8, speed="")
    (task,) = bars.tasks
    clock[0] = 3.0
    assert column.render(task).plain == "for 3 s"
    for clock[0], done in ((4.0, 1), (6.0, 2)):
        bars.update(task.id, completed=done)
    assert column.render(task).plain == "12 s left"
    bars.update(task.id, speed="about 9 s left")
    assert column.render(task).plain == ""
    bars.update(task.id, completed=8, speed="")
    assert column.render(task).plain == "for 6 s"


def test_all_stages_have_a_bar_while_a_stage_is_scored(four: AccuracyMatrix, plan: tuple[PlannedStage, ...]) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True)
    terminal = Terminal(console)
    terminal.handle(SequenceStart({}, plan))
    train(terminal, 1, "reviews")
    terminal.handle(StageEnd(1, "reviews", "ab" * 32, False, SECONDS, {}))
    before = len(console.file.getvalue())
    terminal.handle(Phase(1, "evaluation", 1, 4))
    terminal.close()
    assert re.search(r"evaluation.*1/4.*all stages.*0/3", console.file.getvalue()[before:], re.DOTALL)


@pytest.mark.parametrize(
    ("precision", "share", "said"),
    [
        ("bf16", None, ["a few may be others"]),
        ("bf16", 1.25, ["up to 1.2 % of the last row may be others"]),
        ("fp32", None, []),
    ],
)
def test_rounding_is_said_beside_the_scores(
    four: AccuracyMatrix, precision: str, share: float | None, said: list[str]
) -> None:
    """Answers in bf16 depend on the shapes of their batches, by a little."""
    console = Console(file=io.StringIO(), width=160)
    terminal = Terminal(console)
    stages = tuple(PlannedStage(n, task, "ab" * 32, True, 1, 1) for n, task in enumerate(four.tasks, start=1))
    terminal.handle(SequenceStart({"model": {"name": "m", "precision": precision}}, stages))
    terminal.handle(RowDone(1, four.seen(1), four.summary(1), doubtful=50.0))
    terminal.handle(RowDone(2, four.seen(2), four.summary(2), doubtful=share))
    terminal.handle(SequenceEnd("FINISHED", four.to_json(), {}, {}))
    assert re.findall(r"answers in bf16: (.* may be others)", console.file.getvalue()) == said
