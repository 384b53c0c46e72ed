"""Plain torch: the same steps as DeepSpeed's at ZeRO stage 0, where DeepSpeed cannot be had or is not needed.

Several workers average their gradients in one sum over a flat buffer at the end of a global batch. Torch's own
`DistributedDataParallel` is not used: its hooks expect one forward pass a step, and methods may take more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raycl.train.engine import ReadGradient, Work, WriteGradient, length


class TorchEngine:
    """An optimizer around a module whose trainable parameters are given."""

    def __init__(self, work: Work) -> None:
        self.parameters = work.parameters
        self.optimizer = work.optimizer()
        self._module, self._workers, self._shape = work.module, work.workers, work.shape
        self._max_norm = work.train.max_grad_norm
        self._device = torch.device(work.workers.device).type if work.bf16 else None
        self._seen = 0
        self._norm = torch.zeros(())

    @property
    def grad_norm(self) -> float:
        """As `Engine.grad_norm` says."""
        return float(self._norm)

    def loss(self, *args: Any) -> Any:
        """The module's forward pass, in bf16 where the base model is."""
        with self._precision():
            return self._module(*args)

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self._device is None else torch.autocast(self._device, dtype=torch.bfloat16)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch; with the last one of a global batch, average over the workers."""
        (loss / self._shape.accumulation).backward()
        self.passed()

    def passed(self) -> None:
        """A backward pass of a micro-batch has been made: here, or for several engines at once."""
        self._seen += 1
        if self._at_end:
            self._average()

    @property
    def _at_end(self) -> bool:
        """Whether a global batch is complete."""
        return self._seen % self._shape.accumulation == 0

    def _average(self) -> None:
        """The mean of every gradient over the workers; a parameter that none touched has one of zeros, so that AdamW's decay
        and moments do not depend on what a batch happens to use."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._workers.world == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in self._gradients])
        self._workers.sum([flat])
        flat /= self._workers.world
        for gradient, part in zip(self._gradients, flat.split([one.numel() for one in self._gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @property
    def _gradients(self) -> list[Tensor]:
        """The gradients of all parameters, once they are averaged."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def gradients(self) -> tuple[ReadGradient, WriteGradient]:
        """Functions that read and replace a parameter's gradient, as `Engine.gradients` says."""
        return _read, _write

    def step(self, lr: float) -> None:
        """At the end of a global batch clip, and update at rate `lr`."""
        if not self._at_end:
            return
        self._norm = length(self._gradients)
        if self._max_norm > 0:
            self._clip(self._norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self, norm: Tensor) -> None:
        """Scale all gradients by min(1, m / |g|), in DeepSpeed's order of operations: torch's own function divides as
        m * (1 / |g|) and differs in the last bit."""
        scale = (norm.new_tensor(self._max_norm) / (norm + 1e-6)).clamp(max=1.0)
        for gradient in self._gradients:
            gradient.mul_(scale)

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        self._module.train(mode)

    def close(self) -> None:
        """Drop gradients and moments."""
        self.optimizer.zero_grad()
        del self._module, self.optimizer


def _read(parameter: nn.Parameter) -> Tensor | None:
    return parameter.grad


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.grad = value.to(parameter)
