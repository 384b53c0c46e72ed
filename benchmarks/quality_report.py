"""The table of `benchmarks/quality.py`, written from whatever cells exist."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

Cell = dict[str, Any]
HEAD = """# Every method on real tasks

One model (the packaged 135M Llama-architecture model, bf16, CPU), one budget: 200 training and 100 test examples a task,
prompts of at most 128 tokens, one epoch, batch 8, and where a method has LoRA branches rank 8 and alpha 32 (slao: 16, its
own setting); everything else as the method's defaults. The learning rate of each row is chosen from three values, the same
three for all methods that train the same kind of weights, by the mean score on 50 unused train rows per task after the first
two tasks of the order (`lr choice`: validation score at each value; where it is empty, only the middle value was run). Test
data takes no part.

How to read it: 100 test examples a task and one seed make differences of about 3 points noise; read whole matrices. FT is
forgetting (lower is better), LA the mean score of each task right after its own stage. `task id` methods are told at test
which task a prompt is from, `data` methods train on data of earlier tasks: neither is comparable with the rest. Seconds are
training alone, per optimizer step, while other work ran beside it on the same two cores (not the same share of them for
every row): they show orders of magnitude, not rankings.
"""


def write_report(results: Path, variants: Mapping[str, dict[str, Any]]) -> None:
    """Write quality.md from the cells in results/quality. `variants` are all there are, with their hyper-parameters: a cell
    that was made with others counts as not run."""
    names = list(variants)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((results / "quality").glob("*.json"))]
    cells = [cell for cell in cells if cell["method"] == variants.get(cell["variant"])]
    orders = sorted({cell["order"] for cell in cells})
    lines = [
        HEAD,
        f"Machine: {os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
    ]
    notes = results / "quality-notes.md"
    lines += [notes.read_text(encoding="utf-8").strip(), ""] if notes.is_file() else []
    for order in orders:
        lines += _order(order, [cell for cell in cells if cell["order"] == order], names)
    lines += [
        "## Commands",
        "",
        "```sh",
        "python benchmarks/quality.py --data DIR     # DIR: the 15-task benchmark",
        "```",
    ]
    commits = sorted({stage["commit"][:10] for cell in cells for stage in cell["stages"] if stage["commit"]})
    lines += [
        "",
        f"Stages were made with commits {', '.join(commits)}; each cell's file in `quality/` names its own.",
        "",
    ]
    (results / "quality.md").write_text("\n".join(lines), encoding="utf-8")


def _order(order: str, cells: list[Cell], names: list[str]) -> list[str]:
    """One order: the table, what was not run, the matrices."""
    tasks = max((cell["matrix"]["tasks"] for cell in cells), key=len)
    rows = [_row(name, [c for c in cells if c["variant"] == name]) for name in names]
    missing = [name for name, row in zip(names, rows, strict=True) if row is None]
    lines = [f"## Order {order}: {', '.join(tasks)}", "", _table([row for row in rows if row is not None]), ""]
    lines += [f"Not run on this order: {', '.join(missing)}.", ""] if missing else []
    cells = sorted(cells, key=lambda cell: (names.index(cell["variant"]), cell["seed"]))
    lines += _routes([cell for cell in cells if "routing" in cell])
    for cell in cells:
        lines += _matrix(cell)
    return lines


def _routes(cells: list[Cell]) -> list[str]:
    """How the routed variants sent their inputs after the last task: figures, and every pair of tasks that was mixed up."""
    if not cells:
        return []
    rows = []
    for cell in cells:
        routing = cell["routing"]
        tasks, counts = routing["tasks"], routing["counts"]
        wrong = {(i, j): counts[i][j] for i in range(len(tasks)) for j in range(len(tasks)) if i != j and counts[i][j]}
        pairs = sorted(wrong, key=lambda pair: -wrong[pair])
        rows.append(
            {
                "variant": cell["variant"],
                "seed": cell["seed"],
                "AP": f"{cell['measures']['AP']:.2f}",
                "AP, all routes right": f"{routing['routing/oracle_AP']:.2f}",
                "routed right, %": f"{routing['routing/accuracy']:.1f}",
                "changed in the last stage, %": f"{routing['routing/changed']:.1f}",
                "taken for another task": ", ".join(f"{tasks[i]} for {tasks[j]}: {wrong[i, j]}" for i, j in pairs)
                or "none",
            }
        )
    return ["### Where inputs were sent", "", _table(rows), ""]


def _row(name: str, cells: list[Cell]) -> dict[str, Any] | None:
    """One line of the table: means over the seeds."""
    if not cells:
        return None
    first = cells[0]
    stages = first["stages"]
    steps = sum(stage["steps"] for stage in stages)
    return {
        "variant": name,
        "seeds": len(cells),
        **{measure: _mean(cells, measure) for measure in ("AP", "FT", "BWT", "LA")},
        "lr": f"{first['lr']:g}",
        "lr choice": ", ".join(f"{float(lr):g}: {score:.0f}" for lr, score in first["tried"].items()),
        "trained numbers a stage": f"{stages[-1]['trainable_parameters']:,}",
        "state, MB": f"{sum(stage['bytes'] for stage in stages) / 1e6:.1f}",
        "s a step": f"{sum(stage['seconds']['train'] for stage in stages) / steps:.2f}",
        "passes, s": f"{sum(s['seconds']['pass_before'] + s['seconds']['pass_after'] for s in stages):.0f}",
    }


def _mean(cells: list[Cell], measure: str) -> str:
    """Mean over the seeds, with lowest and highest where there are several."""
    values = [cell["measures"][measure] for cell in cells if cell["measures"][measure] is not None]
    if not values:
        return "-"
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _matrix(cell: Cell) -> list[str]:
    """The accuracy matrix of one cell of the benchmark."""
    tasks = cell["matrix"]["tasks"]
    rows = [row for row in cell["matrix"]["rows"][1:] if any(value is not None for value in row)]
    after = tasks if len(rows) == len(tasks) else ["all"]
    shown = [
        {"after": label}
        | {task: "" if value is None else f"{value:.0f}" for task, value in zip(tasks, row, strict=True)}
        for label, row in zip(after, rows, strict=True)
    ]
    return [f"### {cell['variant']}, seed {cell['seed']}, lr {cell['lr']:g}", "", _table(shown), ""]


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the first row's keys are the head."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
