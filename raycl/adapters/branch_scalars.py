"""One trained scalar per frozen branch and adapted layer: how much the branch counts for every input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BranchScalars(nn.Module):
    """omega = start + rate * move, (layers, branches). Rows that are not free keep their start, whatever the optimizer does.

    An optimizer whose steps do not depend on the gradient's size, as Adam's, moves omega at `rate` times its own rate.
    """

    start: Tensor
    free: Tensor

    def __init__(self, start: Tensor, free: Tensor, rate: float) -> None:
        """`start` (layers, branches) and which rows train, (layers,)."""
        super().__init__()
        self.register_buffer("start", start.float().clone(), persistent=False)
        self.register_buffer("free", free[:, None].float(), persistent=False)
        self.rate = rate
        self.move = nn.Parameter(torch.zeros_like(self.start))

    def values(self) -> Tensor:
        """omega (layers, branches)."""
        return self.start + self.rate * self.free * self.move
