"""How much single weights matter: mean squares of gradients, weight by weight."""

from __future__ import annotations

import torch
from torch import Tensor


class MeanSquare:
    """Running mean of g^2 of one weight tensor, in its shape.

    `total` (fp32) and `count` are what data-parallel workers add up before anyone reads `value`.
    """

    def __init__(self, like: Tensor) -> None:
        """Nothing counted yet, on the device of `like`."""
        self.total = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
        self.count = torch.zeros((), dtype=torch.float32, device=like.device)

    def add(self, gradient: Tensor | None) -> None:
        """Count one gradient; none is a gradient of zeros."""
        if gradient is not None:
            self.total += gradient.detach().float().square()
        self.count += 1

    @property
    def value(self) -> Tensor:
        """(1/n) sum of g^2, fp32. Raises ValueError before a gradient was added."""
        if not self.count > 0:
            raise ValueError("mean square: no gradients were added")
        return self.total / self.count
