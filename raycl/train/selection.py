"""Choosing among epochs by the loss on a held-out part of the training set. Test data never takes part."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
