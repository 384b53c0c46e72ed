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
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raycl.adapters.backbone import IGNORE, Inputs
from raycl.adapters.branches import Branches
from raycl.files import write_text
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.common.feature_sums import DISTANCES, FOURTH, MEAN, SCATTER
from raycl.methods.registry import build, method_params
from raycl.methods.route_lora import LEVELS, RouteLora, RouteLoraParams
from raycl.models.load import LoadedModel, load_model
from raycl.models.precision import native_precision
from raycl.spec import ModelSpec
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.train.decoding import GREEDY
from raycl.train.module import StageModule, feed, precision

RESULTS = Path(__file__).parent / "results" / "route_cost.md"
ROWS, TOKENS, ANSWER, NEW = 8, 128, 4, 8
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


def method_of(name: str) -> Method:
    """A method with its default branch, at the stage after all the tasks."""
    return build(method_params(name).model_validate({"name": name}), StageInfo(2, 2, "new", 0))


def made_up(model: LoadedModel, tasks: int) -> StageState:
    """The state of a routed sequence of so many tasks, in random numbers."""
    backbone, draw = model.backbone, torch.Generator().manual_seed(0)
    params = RouteLoraParams()
    branches = Branches(backbone, params.shape, ())
    shapes = {path: (layer.down.shape, layer.up.shape) for path, layer in branches.layers.items()}
    branches.remove()
    width = backbone.width
    parts = []
    for index in range(tasks):
        a = {path: torch.randn(down, generator=draw) / down[1] ** 0.5 for path, (down, _) in shapes.items()}
        b = {path: 1e-3 * torch.randn(up, generator=draw) for path, (_, up) in shapes.items()}
        rows = torch.randn(200, width, generator=draw, dtype=torch.float64) + torch.randn(width, generator=draw)
        away = rows - rows.mean(dim=0)
        tensors = {
            MEAN: rows.mean(dim=0).float(),
            SCATTER: (away.T @ away)[torch.ones(width, width).triu().bool()].float(),
            FOURTH: away.norm(dim=1).pow(4).sum()[None].float(),
            DISTANCES: torch.ones(LEVELS),
        }
        parts.append(StagePart(f"task{index}", Branch(params.rank, params.alpha, a, b), tensors, {"count": 200}))
    return StageState(tuple(parts))


def batch(model: LoadedModel, rows: int, answers: bool) -> Inputs:
    """Random prompts of `TOKENS` tokens, with answers of `ANSWER` tokens after them or alone."""
    draw = torch.Generator().manual_seed(1)
    length = TOKENS + ANSWER if answers else TOKENS
    ids = torch.randint(100, 40_000, (rows, length), generator=draw)
    prompt = torch.zeros_like(ids)
    prompt[:, :TOKENS] = 1
    labels = torch.where(prompt.bool(), IGNORE, ids) if answers else None
    return Inputs(ids, torch.ones_like(ids), prompt, labels)


def steps(model: LoadedModel, state: StageState, repeats: int) -> tuple[float, float]:
    """Median seconds of a training step of route_lora and of a single LoRA, a few of each in turn."""
    seconds: dict[str, list[float]] = {"route_lora": [], "sin_lora": []}
    inputs = batch(model, ROWS, answers=True)
    turns = 3
    for _ in range(-(-repeats // turns)):
        for name, taken in seconds.items():
            method = method_of(name)
            method.install(model.backbone, state if name == "route_lora" else StageState())
            module = StageModule(model.backbone, method).train()
            trainable = [weight for weight in module.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW(trainable, lr=1e-4)

            def step(module: StageModule = module, optimizer: torch.optim.Optimizer = optimizer) -> None:
                with precision(model.backbone):
                    loss, *_ = module(inputs)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step()
            taken += [timed(step) for _ in range(turns)]
            method.remove()
    return statistics.median(seconds["route_lora"]), statistics.median(seconds["sin_lora"])


@torch.no_grad()
def routing(model: LoadedModel, state: StageState, repeats: int) -> tuple[float, float]:
    """Median seconds of routing a batch, and of answering it, routing included."""
    method = method_of("route_lora")
    assert isinstance(method, RouteLora)
    method.serve(model.backbone, state)
    backbone, inputs = model.backbone, batch(model, EVALUATED, answers=False)
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
    routed = [timed(lambda: method.condition(inputs)) for _ in range(repeats)]
    answered = [timed(answer) for _ in range(max(3, repeats // 3))]
    method.remove()
    return statistics.median(routed), statistics.median(answered)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
