"""The seam between the training loop and what takes its steps: DeepSpeed, or plain torch.

`train.engine: auto` is plain torch for one process at ZeRO stage 0, which starts without DeepSpeed's seconds of import and
takes the same steps bit for bit on a CPU; worker groups and ZeRO stages 1 to 3 are DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from raycl.sections import TrainSpec
from raycl.train.optimizer import make_optimizer
from raycl.train.workers import Workers

ReadGradient = Callable[[nn.Parameter], Tensor | None]
WriteGradient = Callable[[nn.Parameter, Tensor], None]


@dataclass(frozen=True)
class BatchShape:
    """How a global batch is cut: global = micro x accumulation x world."""

    batch: int
    micro: int
    world: int

    @property
    def accumulation(self) -> int:
        """Micro-batches per worker and optimizer step."""
        return self.batch // (self.micro * self.world)


@dataclass(frozen=True)
class Work:
    """What an engine is made for: the training of one stage."""

    module: nn.Module
    """Those of its parameters train that require a gradient."""
    train: TrainSpec
    shape: BatchShape
    bf16: bool
    """Whether the base model is in bf16, and so the forward pass."""
    workers: Workers

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return list(self._named.values())

    @property
    def _named(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of what trains, for either engine; its rate is set at every step."""
        return make_optimizer(self._named, self.train)


class Engine(Protocol):
    """Takes a module's optimizer steps. Base weights are frozen; everything that trains is fp32."""

    parameters: list[nn.Parameter]
    """What trains."""
    optimizer: torch.optim.Optimizer

    @property
    def grad_norm(self) -> float:
        """The length of the last step's gradient over all that trains and all workers, before it was clipped."""
        ...

    def loss(self, *args: Any) -> Any:
        """The module's forward pass, under the engine's autocast."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch."""
        ...

    def gradients(self) -> tuple[ReadGradient, WriteGradient]:
        """Functions that read and replace a parameter's whole gradient.

        They hold between `backward` of a global batch's last micro-batch and `step`, when gradients are averaged over the
        workers.
        """
        ...

    def step(self, lr: float) -> None:
        """Count a micro-batch; at the end of a global batch clip by the global norm and update at rate `lr`."""
        ...

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        ...

    def close(self) -> None:
        """Give every worker the full trained weights and take hooks, buffers and gradients away."""
        ...


def length(gradients: Sequence[Tensor]) -> Tensor:
    """The length of all gradients together, a scalar on their device, in DeepSpeed's order of operations."""
    if not gradients:
        return torch.zeros(())
    return torch.stack([gradient.norm(2.0) for gradient in gradients]).pow(2.0).sum().pow(0.5)


def engine_name(train: TrainSpec, world: int) -> Literal["deepspeed", "torch"]:
    """Which engine takes the steps of a stage in `world` workers."""
    if train.engine != "auto":
        return train.engine
    return "torch" if world == 1 and train.zero_stage == 0 else "deepspeed"


def start_engine(train: TrainSpec, workers: Workers) -> None:
    """Do once in a process what the engine needs before its first stage.

    For DeepSpeed this takes seconds, on a GPU minutes where an op has to be built. Raises SetupError where it is not
    installed, and for a build that fails.
    """
    if engine_name(train, workers.world) == "deepspeed":
        from raycl.train.engine_deepspeed import start_deepspeed

        start_deepspeed(workers.device)


def make_engine(work: Work) -> Engine:
    """The engine of one stage."""
    if engine_name(work.train, work.workers.world) == "deepspeed":
        from raycl.train.engine_deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(work)
    from raycl.train.engine_torch import TorchEngine

    return TorchEngine(work)
