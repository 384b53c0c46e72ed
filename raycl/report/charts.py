"""Charts that lay several sequences or trials over each other. A chart is drawn alone on a page, or many on one sheet.

A method, a variant or a trial keeps its colour, dash and marker in all charts of a report; no meaning hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeGuard

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from raycl.analysis.views import SequenceView, TrialView
from raycl.report.plots import AS_TEXT, OKABE_ITO, ap_points, measured
from raycl.report.tables import number, short

DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")
"""Five markers and seven colours: a pair comes back after 35 lines."""
GRID = "#e5e5e5"
PAPER = "#ffffff"
PER_ROW = 3
"""Charts beside each other on a sheet."""
LEVELS = 6
"""Up to so many values, a searched setting is drawn in even steps; beyond, numbers are drawn to scale."""
DECADE = 20
"""From this ratio of the largest to the smallest on, a scale of positive numbers is logarithmic."""


@dataclass(frozen=True)
class Style:
    """How the lines and points of one method, variant or trial look."""

    colour: int
    """Index into OKABE_ITO."""
    dash: str
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """The keywords of a matplotlib line."""
        marker = {"marker": self.marker, "ms": 4}
        return {"color": OKABE_ITO[self.colour], "ls": self.dash, "lw": 1.3, **marker}


SMALL = (3.9, 2.6)
"""Size of most charts in inches."""
MARGINS = {"left": 0.155, "right": 0.985, "bottom": 0.19, "top": 0.895}
"""Where the axes of a small chart end, as shares of its width and height."""


@dataclass(frozen=True)
class Chart:
    """One set of axes: what it shows in words, how to draw it, and its size alone on a page in inches."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = SMALL


def alone(chart: Chart) -> Figure:
    """A chart on a figure of its own. A small one, of which a page has one for every task, has margins for labels of six
    characters: to find out what each needs takes matplotlib as long as to draw it."""
    figure = sheet([chart], {})
    if chart.size == SMALL:
        figure.set_layout_engine(None)
        figure.subplots_adjust(**MARGINS)
    return figure


def styles_of(lines: Sequence[str]) -> dict[str, Style]:
    """A style for every line, in order of appearance."""
    names = dict.fromkeys(lines)
    return {
        name: Style(i % len(OKABE_ITO), DASHES[i // len(OKABE_ITO) % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    }


def sheet(charts: Sequence[Chart], styles: Mapping[str, Style], legend: bool = True) -> Figure:
    """All charts on one figure, with a legend of the lines below."""
    columns = min(PER_ROW, len(charts))
    rows = math.ceil(len(charts) / columns)
    width, height = charts[0].size
    beside = _beside(styles, width * columns)
    with mpl.rc_context({**AS_TEXT, "font.size": 9}):
        key = 0.25 * math.ceil(len(styles) / beside) if legend else 0
        figure = Figure(figsize=(width * columns, height * rows + key), layout="constrained")
        FigureCanvasAgg(figure)
        for place, chart in enumerate(charts, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.spines[["top", "right"]].set_visible(False)
            chart.draw(axes)
            axes.set_title(_drawable(chart.title), loc="left", fontsize=9)
        if legend and styles:
            handles = [Line2D([], [], **style.line) for style in styles.values()]
            figure.legend(
                handles,
                [_drawable(name) for name in styles],
                loc="outside lower left",
                ncols=beside,
                frameon=False,
            )
    return figure


def _beside(names: Iterable[str], width: float) -> int:
    """How many entries of a legend fit beside each other in so many inches."""
    longest = max(map(len, names), default=0)
    return max(1, int(width / (0.6 + 0.08 * longest)))


# --- what is drawn -----------------------------------------------------------------------------------------------


def ap_chart(sequences: Sequence[SequenceView], styles: Mapping[str, Style]) -> Chart:
    """AP after every stage."""

    def draw(axes: Axes) -> None:
        _bands(axes, sequences, styles, lambda one: ap_points(one.matrix))
        _stages(axes, 1, len(sequences[0].matrix.tasks))

    return Chart("AP after every stage", draw, (4.4, 3.2))


def task_charts(sequences: Sequence[SequenceView], styles: Mapping[str, Style]) -> list[Chart]:
    """For every task its score from its own stage on."""
    tasks = sequences[0].matrix.tasks
    return [_task_chart(i, tasks, sequences, styles) for i in range(len(tasks))]


def _task_chart(
    index: int, tasks: Sequence[str], sequences: Sequence[SequenceView], styles: Mapping[str, Style]
) -> Chart:
    """The score of one task."""
    stages = range(index + 1, len(tasks) + 1)

    def draw(axes: Axes) -> None:
        _bands(axes, sequences, styles, lambda one: [(stage, one.matrix.get(stage, tasks[index])) for stage in stages])
        _stages(axes, index + 1, len(tasks))

    return Chart(f"{index + 1} {short(tasks[index], 32)}", draw)


def cost_charts(sequences: Sequence[SequenceView], styles: Mapping[str, Style]) -> list[Chart]:
    """AP against what it cost, one point per finished sequence."""
    costs: list[tuple[str, str, Callable[[SequenceView], float]]] = [
        ("AP against time", "seconds of training, passes and scoring", lambda one: one.seconds),
        ("AP against trained parameters", "trainable parameters, largest stage", lambda one: one.trainable),
        ("AP against storage", "bytes in the store, all stages", lambda one: one.bytes),
    ]
    return [_cost_chart(title, label, cost, sequences, styles) for title, label, cost in costs]


def _cost_chart(
    title: str,
    label: str,
    cost: Callable[[SequenceView], float],
    sequences: Sequence[SequenceView],
    styles: Mapping[str, Style],
) -> Chart:
    def draw(axes: Axes) -> None:
        for one in sequences:
            axes.plot(cost(one), one.ap, **{**styles[one.line].line, "ls": "none", "ms": 6})
        if _wide([cost(one) for one in sequences]):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel=label, ylabel="AP", ylim=(-2, 104))
        _grid(axes)

    return Chart(title, draw)


def sweep_chart(trials: Sequence[TrialView]) -> Chart:
    """Parallel coordinates: one line per trial through its settings to its AP; the best one stands out."""
    names = list(trials[0].params)
    scales = [_Scale.of([trial.params[name] for trial in trials]) for name in names]
    scored = [trial for trial in trials if trial.ap is not None]
    scores = _Scale.of([round(trial.ap or 0, 2) for trial in scored], levels=0)

    def draw(axes: Axes) -> None:
        box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1}
        best = max(scored, key=lambda trial: (trial.status == "finished", trial.ap), default=None)
        for trial in trials:
            heights = [scale.place(trial.params[name]) for name, scale in zip(names, scales, strict=True)]
            heights += [] if trial.ap is None else [scores.place(round(trial.ap, 2))]
            axes.plot(range(len(heights)), heights, **_trial_line(trial, trial is best, heights))
        for x, scale in enumerate([*scales, scores]):
            axes.axvline(x, color="#000000", lw=0.8)
            for height, text in scale.ticks:
                axes.annotate(text, (x, height), (5, 0), textcoords="offset points", va="center", fontsize=8, bbox=box)
        axes.set_xticks(range(len(names) + 1), [*(short(_drawable(name), 24) for name in names), "AP"])
        axes.set(ylim=(-0.06, 1.06), xlim=(-0.15, len(names) + 0.45))
        axes.tick_params(length=0)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    return Chart("Settings of every trial, and its AP", draw, (max(4.4, 1.5 * (len(names) + 1)), 3.6))


def _trial_line(trial: TrialView, best: bool, heights: Sequence[float]) -> dict[str, Any]:
    """The best trial thick, others the fainter the lower they end; early ends dashed, no score dotted."""
    style = ":" if trial.ap is None else "-" if trial.status == "finished" else "--"
    if best:
        return {"color": OKABE_ITO[1], "lw": 2.6, "ls": style, "zorder": 3}
    return {
        "color": OKABE_ITO[0],
        "lw": 1.1,
        "ls": style,
        "alpha": 0.25 if trial.ap is None else 0.3 + 0.6 * heights[-1],
    }


@dataclass(frozen=True)
class _Scale:
    """Where values lie on an axis from 0 to 1."""

    places: dict[object, float]
    ticks: list[tuple[float, str]]

    @classmethod
    def of(cls, values: Sequence[object], levels: int = LEVELS) -> _Scale:
        """Few values, or words: in even steps. Many numbers: to scale, with the ends and the middle named."""
        distinct = list(dict.fromkeys(values))
        numbers = [float(value) for value in distinct if _is_number(value)]
        if len(numbers) == len(distinct) > max(levels, 1):
            return cls._to_scale(numbers, distinct)
        distinct.sort(key=lambda value: (not _is_number(value), value if _is_number(value) else 0, str(value)))
        places = {value: (i + 0.5) / len(distinct) for i, value in enumerate(distinct)}
        step = math.ceil(len(distinct) / 12)
        return cls(places, [(places[value], _text(value)) for value in distinct[::step]])

    @classmethod
    def _to_scale(cls, numbers: Sequence[float], values: Sequence[object]) -> _Scale:
        wide = _wide(numbers)
        bent = [math.log(value) if wide else value for value in numbers]
        low, high = min(bent), max(bent)
        places = {value: (x - low) / (high - low) for value, x in zip(values, bent, strict=True)}
        marks = [low + (high - low) * share for share in (0, 0.5, 1)]
        texts = [_text(math.exp(mark) if wide else mark) for mark in marks]
        return cls(places, list(zip((0.0, 0.5, 1.0), texts, strict=True)))

    def place(self, value: object) -> float:
        """The height of a value."""
        return self.places[value]


# --- parts of a chart --------------------------------------------------------------------------------------------


def _bands(
    axes: Axes,
    sequences: Sequence[SequenceView],
    styles: Mapping[str, Style],
    points: Callable[[SequenceView], Iterable[tuple[int, float]]],
) -> None:
    """For every line of a report the mean over its sequences, that is seeds, and a band from the least to the most.

    A stage that only some of them reached has the mean of those.
    """
    for name, style in styles.items():
        values: dict[int, list[float]] = {}
        for one in sequences:
            if one.line == name:
                for stage, value in measured(points(one)):
                    values.setdefault(stage, []).append(value)
        if not values:
            continue
        stages = sorted(values)
        axes.plot(stages, [fmean(values[stage]) for stage in stages], **style.line)
        if max(map(len, values.values())) > 1:
            low, high = ([pick(values[stage]) for stage in stages] for pick in (min, max))
            axes.fill_between(stages, low, high, color=OKABE_ITO[style.colour], alpha=0.15, lw=0)


def _stages(axes: Axes, first: int, last: int) -> None:
    """Axes of scores (0 to 100) from stage `first` to stage `last`."""
    step = math.ceil((last - first + 1) / 15)
    axes.set_xticks(range(first, last + 1, step))
    axes.set(ylim=(-2, 104), xlim=(first - 0.3, last + 0.3), ylabel="score", xlabel="after stage")
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def _wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= DECADE


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    """A setting's value on an axis."""
    return f"{value:.4g}" if isinstance(value, float) else short(_drawable(str(value)), 16)


def _drawable(text: str) -> str:
    """`text` without what SVG cannot hold, and without the leading `_` by which matplotlib hides a label."""
    return "".join(letter if letter.isprintable() else " " for letter in text).lstrip("_") or "-"


def measures(one: SequenceView) -> list[str]:
    """AP, FT, BWT and FWT of a sequence after its last scored stage, as text."""
    values = one.matrix.summary(one.last).values() if one.last else [math.nan] * 4
    return [number(value, 2) for value in values]
