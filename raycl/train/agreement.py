"""Whether every engine gives the same gradients here: two processes, a tiny module, two passes that carry gradients.

DeepSpeed 0.18.3 to 0.19.3 gave silently wrong gradients at ZeRO stage 2 with bf16 and two such passes: nothing failed, and
every stage trained on them was wrong. `python -m raycl.train.agreement RANK FOLDER` is one of the two processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from raycl.files import write_json
from raycl.sections import TrainSpec
from raycl.train.engine import BatchShape, Work, make_engine, start_engine
from raycl.train.workers import Workers, meet

WORLD = 2
SILENT = timedelta(seconds=120)
"""How long a process waits for the other before it gives up."""
CLOSE = 1e-5
"""Largest difference that rounding explains, as a share of a gradient's norm: a pass left out differs by far more."""
ENGINES: dict[str, tuple[Literal["deepspeed", "torch"], Literal[0, 1, 2, 3]]] = {
    "torch": ("torch", 0),
    **{f"ZeRO {stage}": ("deepspeed", stage) for stage in (0, 1, 2, 3)},
}
"""The engines by the names that a report gives them; the first is what the others are compared with."""
PRECISIONS = {"fp32": False, "bf16": True}
Gradients = dict[str, list[float]]
"""Parameter -> its gradient, flat, averaged over the processes."""


class Twice(nn.Module):
    """A frozen layer, and two of which one is used by both passes and one by the second alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.base = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.both = nn.Linear(8, 4, bias=False)
        self.second = nn.Linear(4, 8, bias=False)

    def forward(self, inputs: Tensor, again: bool) -> Tensor:
        """A loss (scalar, fp32) over `inputs` (B, 8)."""
        made = self.both(torch.tanh(self.base(inputs)))
        return (self.second(torch.tanh(made)) if again else made).float().pow(2).mean()


def gradients(name: str, bf16: bool, workers: Workers) -> Gradients:
    """What the engine of this name makes of two micro-batches, each of two passes."""
    engine, stage = ENGINES[name]
    module = Twice()
    train = TrainSpec(engine=engine, zero_stage=stage, max_grad_norm=0.0)
    start_engine(train, workers)
    made = make_engine(Work(module, train, BatchShape(4 * workers.world, 2, workers.world), bf16, workers))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: Gradients = {}
    try:
        for batch in range(2):
            generator = torch.Generator().manual_seed(10 * batch + workers.rank)
            inputs = torch.randn(2, 8, generator=generator)
            made.backward(made.loss(inputs, False) + made.loss(inputs + 1, True))
            if batch == 1:
                read, _ = made.gradients()
                for parameter in made.parameters:
                    value = read(parameter)
                    found[names[id(parameter)]] = [] if value is None else value.float().flatten().tolist()
            made.step(1e-3)
    finally:
        made.close()
    return found


def run(rank: int, folder: Path) -> None:
    """As one of two processes, leave in `folder` the gradients of every engine and precision."""
    workers = meet(folder, rank, WORLD, SILENT)
    made = {kind: {name: gradients(name, bf16, workers) for name in ENGINES} for kind, bf16 in PRECISIONS.items()}
    write_json(folder / f"{rank}.json", made)


def on_cpu() -> dict[str, str]:
    """The environment of the processes: this one's, without GPUs, since two processes cannot share one under NCCL."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def read_gradients(folder: Path) -> list[dict[str, dict[str, Gradients]]]:
    """What each process left: precision -> engine -> gradients. Raises FileNotFoundError if one left nothing."""
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(WORLD)]


def disagreements(made: Mapping[str, Gradients]) -> list[str]:
    """The engines whose gradients are not those of the first one, each with the parameter and how far they are apart."""
    (_, like), *others = made.items()
    found = []
    for name, theirs in others:
        for parameter, mine in like.items():
            apart = _apart(mine, theirs.get(parameter, []))
            if not apart <= CLOSE:
                found.append(f"{name}, {parameter}: {apart:.1e} of its norm apart")
    return found


def _apart(mine: list[float], theirs: list[float]) -> float:
    """The norm of the difference as a share of the first one's; infinity where one is missing."""
    if len(mine) != len(theirs) or not mine:
        return float("inf")
    one, other = torch.tensor(mine, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    return float((one - other).norm() / one.norm().clamp(min=1e-30))


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
