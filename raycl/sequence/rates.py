"""How fast a process works where nothing was measured: stated for kinds of GPUs, timed once for the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from raycl.analysis.cost import Rates
from raycl.errors import SpecError, shown
from raycl.models.precision import Precision, gpus
from raycl.train.workers import cores, set_threads

GIB = 2**30


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU as its maker's data sheet has it, without sparsity."""

    bf16: float
    """Floating-point operations a second in bf16."""
    fp32: float
    """The same in fp32, without TF32."""
    moved: float
    """Bytes a second from its memory."""
    memory: int
    """Bytes."""


KINDS = {
    "h200": GpuKind(989e12, 67e12, 4.8e12, 141 * GIB),
    "h100": GpuKind(989e12, 67e12, 3.35e12, 80 * GIB),
    "a100": GpuKind(312e12, 19.5e12, 2.04e12, 80 * GIB),
    "l40s": GpuKind(362e12, 91.6e12, 0.864e12, 48 * GIB),
    "a10": GpuKind(125e12, 31.2e12, 0.6e12, 24 * GIB),
    "l4": GpuKind(121e12, 30.3e12, 0.3e12, 24 * GIB),
}
"""By a part of the name that the GPU gives itself, longer names first where one is part of another."""
DEFAULT_KIND = "h100"
UTILISATION = 0.35
"""Share of the data sheet's arithmetic that passes over many tokens reach; fine-tuning of such models in eager mode."""
READ_SHARE = 0.6
"""Share of the data sheet's bytes a second."""
LAYER_SECONDS = 1e-3
"""What a layer's pass costs on a GPU beside its arithmetic, in eager mode: Python, and the start of some hundred kernels."""
HERE_SHARE, HERE_FORWARD = 0.45, 0.65
"""Share of a timed matrix product that passes forward and back, and forward alone, reach on a CPU: what is done element by
element takes the rest. As the packaged model reached it in bf16 on two cores."""
HERE_LAYER_SECONDS = 1e-3
"""As `LAYER_SECONDS`, on a CPU."""
SIDE, ROWS, TALL = 1024, 128, 16
"""Width of the matrices that are timed, rows of the product over many tokens, and how many times as tall the matrix is
that a single row reads: more than caches hold."""
TRIES = 30


def kind_of(name: str) -> str | None:
    """The kind of a GPU by what it calls itself; none for one that is not in the table."""
    return next((kind for kind in KINDS if kind in name.lower()), None)


def asked_kind(kind: str | None) -> str:
    """The kind of GPU that a user asks for, or else that of this machine, or else the default.

    Raises SpecError for one that is not in the table.
    """
    if kind is None:
        here = gpus()
        return (kind_of(here[0].name) if here else None) or DEFAULT_KIND
    if kind.lower() not in KINDS:
        raise SpecError(f"--gpu {shown(kind)}: unknown; allowed: {', '.join(KINDS)}")
    return kind.lower()


def stated(kind: str, precision: Precision) -> Rates:
    """What one GPU of a kind is taken to reach."""
    gpu = KINDS[kind]
    flops = gpu.bf16 if precision == "bf16" else gpu.fp32
    said = (
        f"stated: {kind} with {flops / 1e12:,.0f} TFLOP/s in {precision}, {UTILISATION:.0%} of it reached, "
        f"{gpu.moved / 1e12:.2f} TB/s, {READ_SHARE:.0%} of it reached, {LAYER_SECONDS * 1e3:g} ms for each layer of a pass"
    )
    reached = flops / 2 * UTILISATION
    return Rates(reached, reached, gpu.moved * READ_SHARE, LAYER_SECONDS, said)


@lru_cache(maxsize=4)
def timed(device: str, precision: Precision) -> Rates:
    """What this machine's `device` reaches in two small matrix products, timed in a fraction of a second, once."""
    if device == "cpu":
        set_threads(cores())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    small, tall = (torch.ones(side * SIDE, SIDE, dtype=dtype, device=device) for side in (1, TALL))
    many, one = (torch.ones(rows, SIDE, dtype=dtype, device=device) for rows in (ROWS, 1))
    products = small.numel() * ROWS / _fastest(lambda: many @ small.T, device)
    moved = tall.numel() * tall.element_size() / _fastest(lambda: one @ tall.T, device)
    cpu = device == "cpu"
    share, forward, layer = (
        (HERE_SHARE, HERE_FORWARD, HERE_LAYER_SECONDS) if cpu else (UTILISATION, UTILISATION, LAYER_SECONDS)
    )
    said = (
        f"from matrix products timed on this machine's {device}: {2 * products / 1e9:,.0f} GFLOP/s in {precision} of which "
        f"{share:.0%} are reached, forward alone {forward:.0%}, {moved / 1e9:,.1f} GB/s, and "
        f"{layer * 1e3:g} ms for each layer of a pass"
    )
    return Rates(products * share, products * forward, moved, layer, said)


def _fastest(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of some tries, each of a few milliseconds: others on the machine only make it slower."""
    best = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
