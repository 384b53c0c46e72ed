"""The rows of benchmarks/performance.py on single training steps."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any, cast

from performance_cell import Bar, Cell, Figure, in_processes
from shapes import PACKAGED, backbone_of
from step_time import METHODS, Case, memory_ratio, penalty_share, step_bytes, step_costs
from steps import SIZES, Clock, Sizes, in_turn, ratio, twin

from raycl.adapters.backbone import Backbone
from raycl.models.precision import native_precision
from raycl.train.compiled import compiled
from raycl.train.workers import set_threads

GATED = ("gain_lora", "am_lora")
"""The methods that weigh every branch by the input: their branches cannot be less than the floor."""
COUNTS = (15, 64)
SHAPE_BARS = {"t5-large": {15: 1.04, 64: 1.10}, "llama-7b": {15: 1.02, 64: 1.05}}
"""What a step may take over a plain LoRA's, by shape and frozen branches."""
RANKS = {"t5-large": (4, 8), "llama-7b": (8,)}
SHAPE_LAYERS = {PACKAGED: 0, "t5-large": 4, "llama-7b": 4}
SHAPE_SIZES = {PACKAGED: SIZES, "t5-large": SIZES, "llama-7b": Sizes(4, 64)}
"""A step of Llama-7B layers takes seconds on two cores, so fewer tokens. A gate is computed once for all layers: the
fewer there are, the more it weighs."""
ROUNDS = 3


@lru_cache(maxsize=1)
def _backbone(shape: str) -> Backbone:
    return backbone_of(shape, SHAPE_LAYERS[shape], native_precision(), _device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def case_of(shape: str, rank: int) -> Case:
    """What the rows of a shape are measured on; on a CPU with one thread, in CPU seconds."""
    set_threads(1)
    clock = Clock(_device(), busy=_device() == "cpu")
    return Case(_backbone(shape), rank, SHAPE_SIZES[shape], ROUNDS, clock)


def figure(case: Case, value: float, note: str, **details: float) -> Figure:
    """A measured value with what the case says of it."""
    sizes = case.sizes
    told = f"{note}{sizes.rows} x {sizes.tokens} tokens" + (", CPU seconds" if case.clock.busy else "")
    precision = "bf16" if case.backbone.dtype.itemsize == 2 else "fp32"
    return Figure(value, precision, 1, {"note": told, **details})


def step(shape: str, rank: int, name: str, tasks: int, over_floor: bool) -> Figure:
    """A step over a plain LoRA's, or over the floor of that."""
    case = case_of(shape, rank)
    cost = step_costs(case, [name], tasks)[name]
    value = cost.ratio / cost.floor if over_floor else cost.ratio
    layers = f"{SHAPE_LAYERS[shape]} layers, " if SHAPE_LAYERS[shape] else ""
    note = f"{cost.ratio:.3f} x LoRA, floor {cost.floor:.3f}, {layers}"
    return figure(case, value, note, **asdict(cost))


def memory(name: str) -> Figure:
    """Memory of a step with 15 frozen branches over that of one branch and what the 15 hold."""
    case = case_of(PACKAGED, 8)
    return figure(case, memory_ratio(case, name, COUNTS[0]), "all tensors at the end of a forward pass, ")


def penalty() -> Figure:
    """O-LoRA's penalty in a step, in percent."""
    case = case_of(PACKAGED, 8)
    return figure(case, 100 * penalty_share(case, COUNTS[0]), "")


def compiled_layers() -> Figure:
    """A step over the same with compiled layers, once they are."""
    case = case_of(PACKAGED, 8)
    plain, made = (case.step("o_lora", COUNTS[0]) for _ in range(2))
    with compiled(made.backbone.model):
        began = time.process_time()
        made()
        first = time.process_time() - began
        seconds = in_turn({"plain": plain, "compiled": made}, ROUNDS, case.clock)
    note = f"the first step took {first:.0f} s, with the compiling; o_lora, {COUNTS[0]} branches, "
    return figure(case, ratio(seconds["plain"], seconds["compiled"]), note, first=first)


def checkpointed() -> Figure:
    """Memory of a step with gradient checkpointing over one without."""
    case = case_of(PACKAGED, 8)
    sparing = replace(case, backbone=twin(case.backbone))
    cast(Any, sparing.backbone.model).gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    memory = [step_bytes(one, "o_lora", COUNTS[0]) for one in (sparing, case)]
    steps = {name: one.step("o_lora", COUNTS[0]) for name, one in (("sparing", sparing), ("plain", case))}
    seconds = in_turn(steps, ROUNDS, case.clock)
    slower = ratio(seconds["sparing"], seconds["plain"])
    return figure(
        case, memory[0] / memory[1], f"in {slower:.2f} x the time; o_lora, {COUNTS[0]} branches, ", time=slower
    )


def _packaged(name: str, tasks: int) -> Cell:
    gated = name in GATED
    return Cell(
        f"step-{PACKAGED}-{tasks}-{name}",
        f"step of `{name}`, {tasks} branches, packaged model",
        Bar(1.03, " x floor" if gated else " x LoRA"),
        partial(in_processes, partial(step, PACKAGED, 8, name, tasks, gated)),
    )


def _shaped(shape: str, rank: int, name: str, tasks: int) -> Cell:
    return Cell(
        f"step-{shape}-r{rank}-{tasks}-{name}",
        f"step of `{name}`, {tasks} branches of rank {rank}, {shape} shapes",
        Bar(SHAPE_BARS[shape][tasks], " x LoRA"),
        partial(in_processes, partial(step, shape, rank, name, tasks, False)),
    )


STEP_CELLS = (
    *(_packaged(name, tasks) for tasks in COUNTS for name in METHODS),
    *(
        _shaped(shape, rank, name, tasks)
        for shape, ranks in RANKS.items()
        for rank in ranks
        for tasks in COUNTS
        for name in GATED
    ),
    Cell("penalty-o_lora-15", "O-LoRA's penalty in its step, 15 branches, packaged model", Bar(3.0, " %"), penalty),
    Cell(
        "compiled-layers",
        "a step over the same with compiled layers (`train.compile`), packaged model",
        Bar(1.0, "x", "least"),
        compiled_layers,
    ),
    Cell(
        "gradient-checkpointing",
        "memory of a step with `model.gradient_checkpointing` over one without, packaged model",
        Bar(1.0, "x"),
        checkpointed,
    ),
    *(
        Cell(
            f"memory-15-{name}",
            f"memory of a step of `{name}`, 15 branches over one",
            Bar(1.05, "x"),
            partial(memory, name),
        )
        for name in METHODS
    ),
)
