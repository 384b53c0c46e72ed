"""The picture of a router: whose weights answered the test inputs of each task."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib import cm, colors
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raycl.analysis.routing import accuracy
from raycl.events import Routing
from raycl.report.plots import AS_TEXT, LETTER, LONGEST_COLUMN, LONGEST_NAME, blank
from raycl.report.tables import number, short

BASE = "base model"


@mpl.rc_context(AS_TEXT)
def confusion(routing: Routing) -> Figure:
    """One row per task, one column per task whose weights answered, in percent of the row; its own are framed.

    A last column, where it is needed, holds the inputs that were like no task. A share of 0 is an empty cell.
    """
    tasks = routing.tasks
    others = any(routing.unknown)
    ways = zip(routing.counts, routing.unknown, strict=True)
    rows = [[*counts, unknown][: len(tasks) + others] for counts, unknown in ways]
    right = accuracy(routing)
    names = [f"{short(task, LONGEST_NAME)}  {i}" for i, task in enumerate(tasks, start=1)]
    brief = max(map(len, tasks)) <= LONGEST_COLUMN
    columns = [*(tasks if brief else map(str, range(1, len(tasks) + 1))), *([BASE] if others else [])]
    beside, below = (LETTER * max(map(len, labels)) for labels in (names, columns))
    figure = blank(max(1.5 + beside + 0.55 * len(columns), 4.4), 1.2 + 0.7 * below + 0.42 * len(tasks))
    axes = figure.add_subplot()
    colours = mpl.colormaps["cividis_r"]
    for i, row in enumerate(rows):
        for j, count in enumerate(row):
            share = count / sum(row)
            frame = {"ec": "black", "lw": 1.2, "zorder": 2} if i == j else {"ec": "#ececec", "lw": 0.8}
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=colours(share) if count else "none", **frame))
            if count:
                colour = "white" if share > 0.45 else "black"
                axes.text(j, i, number(100 * share), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(tasks) - 0.5, -0.5))
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if below > 2 * LETTER else {}
    axes.set_xticks(range(len(columns)), columns, **turned)
    axes.set_yticks(range(len(tasks)), names)
    axes.tick_params(length=0)
    axes.set(xlabel="answered by the weights of", ylabel="inputs of")
    axes.spines[:].set_visible(False)
    axes.set_title(f"{number(sum(right.values()) / len(right))} % found their own task", loc="left", fontsize=10)
    bar = cm.ScalarMappable(colors.Normalize(0, 100), colours)
    figure.colorbar(bar, ax=axes, label="share of the task's inputs (%)", fraction=0.05, pad=0.02, aspect=30)
    return figure
