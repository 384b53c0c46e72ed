"""Penalties on the product of a branch's factors, as large as the weight that it acts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from raycl.adapters.branches import Branches
    from raycl.adapters.stacked_lora import StackedLora


def per_module(branches: Branches, value: Callable[[str, StackedLora], Tensor]) -> Tensor:
    """`value` (a number) of every adapted module's path and layer, (modules,), in fp32 also under autocast.

    What it makes on the way, such as B A (d_out, d_in), is made again in the backward pass: one module's at a time is in
    memory.
    """
    with torch.autocast(branches.backbone.device.type, enabled=False):
        return torch.stack(
            [
                checkpoint(value, path, layer, use_reentrant=False, preserve_rng_state=False)
                for path, layer in branches.layers.items()
            ]
        )
