"""What routing costs after T tasks: `python benchmarks/route_cost.py [--tasks 4 64] [--precision fp32] [--threads 2]`.

Two ratios, of medians measured in one run with the alternatives in turn:

    step      a training step of route_lora after T tasks : one of a single LoRA (sin_lora); 8 prompts of 128 tokens
    routing   routing 16 prompts of 128 tokens : answering them with the routed model, 8 new tokens each

With the packaged model, in this process, on random tokens, branches and sums: what they are has no part in the cost.
Writes benchmarks/results/route_cost.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from made_up import made_up_branches
from steps import SIZES, WALL, TrainingStep, batch, in_turn, method_of, twin

from raycl.adapters.predicting import precision
from raycl.files import write_text
from raycl.methods.common.feature_sums import DISTANCES, FOURTH, MEAN, SCATTER
from raycl.methods.route_lora import LEVELS, RouteLora, RouteLoraParams
from raycl.models.load import LoadedModel, load_model
from raycl.models.precision import native_precision
from raycl.sections import ModelSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.train.decoding import GREEDY
from raycl.train.module import feed

RESULTS = Path(__file__).parent / "results" / "route_cost.md"
NEW = 8
"""Tokens of an answer."""
EVALUATED = 16
"""Prompts of a batch that is answered."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=native_precision())
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    spec = ModelSpec(precision=chosen.precision)
    model = load_model(spec, "cpu")
    lines = [
        "# What routing costs",
        "",
        f"`python benchmarks/route_cost.py`: {platform.processor() or platform.machine()}, {chosen.threads} threads, "
        f"{spec.precision}, torch {torch.__version__}; medians of {chosen.repeats} turns.",
        "",
        "| tasks before | step of route_lora | step of one LoRA | ratio | routing a batch | answering it | share |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tasks in chosen.tasks:
        state = made_up(model, tasks)
        routed, single = steps(model, state, chosen.repeats)
        route, answer = routing(model, state, chosen.repeats)
        lines.append(
            f"| {tasks} | {routed:.3f} s | {single:.3f} s | {routed / single:.3f} | {1000 * route:.1f} ms | {answer:.2f} s "
            f"| {100 * route / answer:.2f} % |"
        )
        print(lines[-1], flush=True)
    write_text(RESULTS, "\n".join(lines) + "\n")


def made_up(model: LoadedModel, tasks: int) -> StageState:
    """The state of a routed sequence of so many tasks, in random numbers."""
    draw, width = torch.Generator().manual_seed(0), model.backbone.width
    parts = []
    for index, branch in enumerate(made_up_branches(model.backbone, RouteLoraParams().shape, tasks)):
        rows = torch.randn(200, width, generator=draw, dtype=torch.float64) + torch.randn(width, generator=draw)
        away = rows - rows.mean(dim=0)
        tensors = {
            MEAN: rows.mean(dim=0).float(),
            SCATTER: (away.T @ away)[torch.ones(width, width).triu().bool()].float(),
            FOURTH: away.norm(dim=1).pow(4).sum()[None].float(),
            DISTANCES: torch.ones(LEVELS),
        }
        parts.append(StagePart(f"task{index}", branch, tensors, {"count": 200}))
    return StageState(tuple(parts))


def steps(model: LoadedModel, state: StageState, repeats: int) -> tuple[float, float]:
    """Median seconds of a training step of route_lora and of a single LoRA, in turn."""
    states, inputs = {"route_lora": state, "sin_lora": StageState()}, batch(model.backbone, SIZES)
    taken = in_turn(
        {name: TrainingStep(twin(model.backbone), method_of(name), one, inputs) for name, one in states.items()},
        repeats,
    )
    return statistics.median(taken["route_lora"]), statistics.median(taken["sin_lora"])


@torch.no_grad()
def routing(model: LoadedModel, state: StageState, repeats: int) -> tuple[float, float]:
    """Median seconds of routing a batch, and of answering it, routing included."""
    method = method_of("route_lora")
    assert isinstance(method, RouteLora)
    method.serve(model.backbone, state)
    backbone = model.backbone
    inputs = batch(backbone, replace(SIZES, rows=EVALUATED), answers=False)
    backbone.model.eval()
    how = GREEDY | {"pad_token_id": model.tokenizer.pad_token_id, "eos_token_id": None}
    how |= {"max_new_tokens": NEW, "min_new_tokens": NEW}

    def answer() -> None:
        method.condition(inputs)
        fed, _, _ = feed(backbone, method, inputs)
        with precision(backbone):
            backbone.model.generate(**fed, **how)

    method.condition(inputs)
    answer()
    routed = [WALL(lambda: method.condition(inputs)) for _ in range(repeats)]
    answered = [WALL(answer) for _ in range(max(3, repeats // 3))]
    method.remove()
    return statistics.median(routed), statistics.median(answered)


if __name__ == "__main__":
    main()
