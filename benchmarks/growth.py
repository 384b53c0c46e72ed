"""What grows with the number of tasks: `python benchmarks/growth.py [--branches 0,1,2,4,8,15,32,64] [--methods ...]`.

For every number of frozen branches and every method, on the packaged model:

    step      a training step over a plain LoRA's, in turn, as benchmarks/step_time.py measures it
    memory    bytes of a step, over those without a frozen branch
    state     bytes that the stages before put into the store, over those of the base model's weights
    install   seconds to put the method on the model, before its first step

Writes benchmarks/results/growth.json, growth.md and growth.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from made_up import made_up_state
from performance_cell import Figure, conditions
from performance_steps import case_of
from shapes import PACKAGED
from step_time import Case, step_bytes, step_costs

from raycl.files import write_json, write_text

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of what draws

RESULTS = Path(__file__).parent / "results"
METHODS = ("gain_lora", "am_lora", "o_lora", "inf_lora")
COUNTS = (0, 1, 2, 4, 8, 15, 32, 64)
CURVES = {
    "step": "training step over a plain LoRA's",
    "memory": "bytes of a step over no branch's",
    "state": "stored bytes over the base model's",
    "install": "seconds to install a stage",
}
Row = dict[str, Any]


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=lambda text: [int(one) for one in text.split(",")], default=list(COUNTS))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    given = parser.parse_args()
    case = case_of(PACKAGED, 8)
    alone = {name: step_bytes(case, name, 0) for name in given.methods}
    rows = []
    for count in given.branches:
        costs = step_costs(case, given.methods, count)
        for name in given.methods:
            row = {"method": name, "branches": count, "step": costs[name].ratio, "floor": costs[name].floor}
            rows.append(row | rest(case, name, count, alone[name]))
            print(rows[-1], flush=True)
    precision = "bf16" if case.backbone.dtype.itemsize == 2 else "fp32"
    held = conditions(Figure(0.0, precision, 1), (0.0, 0.0))
    write_json(RESULTS / "growth.json", {"conditions": held, "rows": rows})
    write_text(RESULTS / "growth.md", page(rows, held))
    draw(rows)


def rest(case: Case, name: str, count: int, alone: int) -> dict[str, float]:
    """Memory, state and installation of a method after so many tasks."""
    state = made_up_state(name, case.backbone, case.rank, count)
    stored = sum(
        one.numel() * one.element_size()
        for part in state.parts
        for one in (
            *part.tensors.values(),
            *(() if part.branch is None else (*part.branch.a.values(), *part.branch.b.values())),
        )
    )
    base = sum(one.numel() * one.element_size() for one in case.backbone.model.parameters())
    started = time.perf_counter()
    case.step(name, count)
    installed = time.perf_counter() - started
    return {"memory": step_bytes(case, name, count) / alone, "state": stored / base, "install": installed}


def page(rows: list[Row], held: dict[str, Any]) -> str:
    """The page of all curves."""
    lines = [
        "# What grows with the number of tasks",
        "",
        f"`python benchmarks/growth.py`: packaged model, 8 x 128 tokens, rank 8, {held['hardware']}, one thread, CPU s, "
        f"{held['precision']}, torch {held['torch']}. `floor` is the step's ratio in multiply-adds. On a machine in use "
        "a step's ratio moves by 0.1 to 0.2 from call to call, at times by more: see performance.md.",
        "",
        "![growth](growth.png)",
        "",
        "| method | frozen branches | step | floor | memory | state | install, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['method']} | {row['branches']} | {row['step']:.3f} | {row['floor']:.3f} | {row['memory']:.3f} "
        f"| {row['state']:.3f} | {row['install']:.2f} |"
        for row in sorted(rows, key=lambda row: (list(METHODS).index(row["method"]), row["branches"]))
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[Row]) -> None:
    """One panel a curve, one line a method."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for panel, (name, title) in zip(panels.flat, CURVES.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            panel.plot([row["branches"] for row in own], [row[name] for row in own], marker="o", label=method)
        if name == "step":
            floors = {row["branches"]: row["floor"] for row in rows}
            panel.plot(list(floors), list(floors.values()), color="0.6", linestyle="--", label="multiply-adds")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("frozen branches")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    figure.savefig(RESULTS / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
