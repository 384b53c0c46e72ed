"""One self-contained HTML page about a sweep or a comparison: no script, no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raycl.analysis.views import SequenceView, TrialView
from raycl.report import charts
from raycl.report.charts import Chart, Style, sheet
from raycl.report.heat import accuracy_heat, angle_heat, differing, gauge_heats
from raycl.report.page import Section, Table, write_page
from raycl.report.plots import heat_map, save

PAIRED = (
    "AP of the first method minus that of the second, on the pairs of order and seed that both finished: mean, 95 % "
    "interval (BCa bootstrap, from 5 pairs on), p of the exact sign-flip test after Holm's correction for all "
    "tests of this page."
)
MOST_SEQUENCES = 30
"""So many sequences get tables of their own; the list of sequences has them all."""


def write_html(
    path: Path,
    title: str,
    sequences: Sequence[SequenceView],
    leaderboard: Sequence[Mapping[str, object]] | None = None,
    sweep: Sequence[TrialView] | None = None,
    differences: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write the page about `sequences` to `path` and return it; a section for which there is no data is left out.

    `leaderboard` has one row per line, best first: column -> text or number (none = empty), the columns of the first row;
    `differences` has one row per pair of methods in the same form.
    `sweep` has the trials of a sweep. The charts are also written as PNG and SVG into `<name of the page>-figures`.
    """
    styles = charts.styles_of([one.line for one in sequences])
    sheets = _sheets(sequences, styles, sweep)
    drawn = [Section(one.name, one.heading, one.note, one.charts, legend=one.legend) for one in sheets]
    write_page(
        path,
        "report.html",
        title,
        [*drawn, *_heat_sections(sequences[:MOST_SEQUENCES])],
        styles,
        sequences=sequences,
        tables=[
            Table(name, heading, note, rows)
            for name, heading, note, rows in (
                ("leaderboard", "Leaderboard", "", leaderboard or ()),
                ("differences", "Paired differences", PAIRED, differences),
            )
            if rows
        ],
        left_out=max(0, len(sequences) - MOST_SEQUENCES),
        settings=differing(sequences),
    )
    write_figures(path.with_name(f"{path.stem}-figures"), sheets, sequences[:MOST_SEQUENCES], styles)
    return path


@dataclass(frozen=True)
class _Sheet:
    """Charts that belong together: a part of the page, and one figure on disk."""

    name: str
    heading: str
    note: str
    charts: list[Chart]
    legend: bool = True


def _sheets(
    sequences: Sequence[SequenceView], styles: Mapping[str, Style], sweep: Sequence[TrialView] | None
) -> list[_Sheet]:
    """The charts for which there is data; sequences that learn different tasks are not laid over each other."""
    sheets = []
    if sweep and any(trial.ap is not None and trial.params for trial in sweep):
        note = (
            "The best trial is thick. Dashed: ended early, AP after its last finished stage. Dotted: no stage finished."
        )
        sheets.append(_Sheet("sweep", "Settings and AP", note, [charts.sweep_chart(sweep)], False))
    orders: dict[tuple[str, ...], list[SequenceView]] = {}
    for one in sequences:
        if one.last:
            orders.setdefault(one.matrix.tasks, []).append(one)
    for place, group in enumerate(orders.values(), start=1):
        of = f", order {group[0].order}" if len(orders) > 1 else ""
        mark = f"-{place}" if len(orders) > 1 else ""
        seeds = len({one.seed for one in group})
        lines = (
            f"Mean over {seeds} seeds, in a band from the least to the most." if seeds > 1 else "One line per method."
        )
        note = f"AP: the mean score of the tasks trained so far. {lines}"
        sheets.append(_Sheet(f"ap{mark}", f"Average performance{of}", note, [charts.ap_chart(group, styles)]))
        note = f"The score of each task from its own stage on: a line that falls is forgetting. {lines}"
        sheets.append(
            _Sheet(f"forgetting{mark}", f"Forgetting, task by task{of}", note, charts.task_charts(group, styles))
        )
    whole = [one for one in sequences if one.last == len(one.matrix.tasks) and one.stages]
    if whole:
        note = (
            "One point per finished sequence. Time: training, data passes and scoring, wherever they were made, "
            "without start-up, builds and waiting."
        )
        sheets.append(_Sheet("cost", "Cost and quality", note, charts.cost_charts(whole, styles)))
    return sheets


def _heat_sections(sequences: Sequence[SequenceView]) -> list[Section]:
    """Tables per sequence: accuracy, what the branches weigh, angles between branches."""
    accuracy = "Score (0 to 100) on each task, by number, after each stage. Without colour: tasks not trained yet."
    gauges = "What each method logged of its branches at the end of every stage, on the last rows it trained on."
    angles = (
        "Degrees between the input subspaces (row spaces of A) of two stages' branches: the mean over principal angles "
        "and layers. 0 = the same directions, 90 = orthogonal."
    )
    measured = [one for one in sequences if one.last]
    found = [
        ("accuracy", "Accuracy matrices", accuracy, [accuracy_heat(one) for one in measured]),
        ("branches", "Weight of the branches", gauges, [heat for one in sequences for heat in gauge_heats(one)]),
        ("angles", "Angles between tasks", angles, [heat for one in sequences if (heat := angle_heat(one))]),
    ]
    return [Section(name, heading, note, heats=heats) for name, heading, note, heats in found if heats]


def write_figures(
    folder: Path, sheets: Sequence[_Sheet], sequences: Sequence[SequenceView], styles: Mapping[str, Style]
) -> None:
    """Every sheet, and the accuracy matrix of every sequence, as PNG and SVG."""
    figures = {one.name: sheet(one.charts, styles, one.legend) for one in sheets}
    figures |= {f"accuracy-{i}": heat_map(one.matrix) for i, one in enumerate(sequences, start=1) if one.last}
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            save(figure, folder / f"{name}.{kind}")
