"""Choosing among epochs by the loss on a held-out part of the training set. Test data never takes part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raycl.train.batches import Encoded, Encoder
from raycl.train.module import StageModule, precision
from raycl.train.workers import Workers


class Best:
    """Keeps the trained weights of the epoch with the lowest held-out loss."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.loss = math.inf
        self.values: list[Tensor] = []

    def offer(self, loss: float) -> None:
        """Keep the weights as they are now if `loss` is the lowest so far."""
        if loss < self.loss:
            self.loss = loss
            self.values = [p.detach().clone() for p in self.parameters]

    def restore(self) -> None:
        """Put the kept weights back."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.data.copy_(value)


@torch.no_grad()
def held_out_loss(
    module: StageModule, encoder: Encoder, rows: Sequence[Encoded], batch_size: int, workers: Workers
) -> float:
    """Token-mean cross-entropy on held-out rows, over all workers."""
    module.eval()
    mine = rows[workers.rank :: workers.world]
    total = torch.zeros(2, device=workers.device)
    with precision(module.backbone):
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            total[0] += module(encoder.collate(batch, workers.device))[0]
            total[1] += sum(len(row.answer) for row in batch)
    workers.sum([total])
    return float(total[0] / total[1].clamp(min=1))
