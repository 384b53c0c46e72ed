"""The page of one sequence, `report.html`: what it scored, learned, forgot and cost, and whose weights answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raycl.analysis.routing import accuracy
from raycl.analysis.views import Forgotten, RunView
from raycl.events import Routing
from raycl.report.charts import styles_of, task_charts
from raycl.report.heat import Heat, accuracy_heat, gauge_heats, share_heat
from raycl.report.page import Section, write_page
from raycl.report.run_charts import cost_chart, cost_rows, loss_charts, measure_charts
from raycl.report.tables import number

PROMPT_SHOWN = 600
"""Characters of a prompt's end that stand on the page; the rest is behind its beginning's ellipsis."""


def write_run_page(path: Path, view: RunView) -> Path:
    """Write the page about one finished sequence to `path` and return it, without sections for which there is no data."""
    costs = cost_rows(view.sequence)
    return write_page(
        path,
        "run.html",
        view.sequence.label,
        [one for one in _sections(view, costs) if one.charts or one.heats],
        styles_of([view.sequence.line]),
        one=view.sequence,
        learning=view.sequence.matrix.learning_accuracy(view.sequence.last),
        costs=costs,
        forgotten=[_shown(one) for one in view.forgotten],
    )


def _sections(view: RunView, costs: Sequence[dict[str, object]]) -> list[Section]:
    one, styles = view.sequence, styles_of([view.sequence.line])
    routes = [] if view.routing is None else [_routes(view.routing)]
    return [
        Section(
            "accuracy",
            "Accuracy matrix",
            "Score (0 to 100) on each task, by number, after each stage. Without colour: tasks not trained yet.",
            heats=[accuracy_heat(one)],
        ),
        Section("progress", "As the stages grow", "", measure_charts(one.matrix)),
        Section(
            "forgetting",
            "Each task from its own stage on",
            "A line that falls is forgetting.",
            task_charts([one], styles),
        ),
        Section(
            "branches",
            "Weight of the branches",
            "What the method logged of its branches at the end of every stage, on the last rows it trained on.",
            heats=gauge_heats(one),
        ),
        Section(
            "routes", "Whose weights answered", "Of the test inputs of each task, after the last stage.", heats=routes
        ),
        Section("loss", "Loss", "Cross-entropy over the answer tokens, penalties left out.", loss_charts(one.stages)),
        Section(
            "cost",
            "Where the time went",
            "Seconds of each stage wherever and whenever it was made; the table below has the figures.",
            [cost_chart(costs)] if costs else [],
        ),
    ]


def _routes(routing: Routing) -> Heat:
    """The confusion between tasks, in percent of a row."""
    right = accuracy(routing)
    rows = []
    for task, counts, unknown in zip(routing.tasks, routing.counts, routing.unknown, strict=True):
        total = sum(counts) + unknown
        rows.append((task, [100 * count / total for count in (*counts, unknown)]))
    note = f"{number(sum(right.values()) / len(right))} % found their own task."
    return share_heat("inputs of", note, [*map(str, range(1, len(routing.tasks) + 1)), "base"], rows)


@dataclass(frozen=True)
class Example:
    """A forgotten example as the page shows it."""

    task: str
    best: int
    prompt: str
    accepted: str
    before: str
    after: str
    number: int


def _shown(one: Forgotten) -> Example:
    prompt = one.before.prompt.strip()
    if len(prompt) > PROMPT_SHOWN:
        prompt = "…" + prompt[-PROMPT_SHOWN:]
    accepted = " or ".join(one.before.accepted)
    return Example(one.task, one.best, prompt, accepted, one.before.prediction, one.after.prediction, one.before.number)
