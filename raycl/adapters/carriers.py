"""Which modules of a base model can carry a branch: those that compute W x + b, however they store W."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor, nn


@lru_cache(maxsize=1)
def carriers() -> tuple[type[nn.Module], ...]:
    """The types of these modules: `nn.Linear`, and `Conv1D`, GPT-2's linear map, which stores W as (d_in, d_out)."""
    from transformers.pytorch_utils import Conv1D  # imports slowly, so only where a model is at hand

    return nn.Linear, Conv1D


def carries_branch(module: nn.Module) -> bool:
    """Whether a module is linear, so that W x + B A x is what a branch on it means."""
    return isinstance(module, carriers())


def stored_transposed(module: nn.Module) -> bool:
    """Whether a linear module stores W as (d_in, d_out)."""
    return carries_branch(module) and not isinstance(module, nn.Linear)


def over_outputs(values: Tensor, parameter: Tensor, module: nn.Module) -> Tensor:
    """One value per output unit (d_out,) of a linear module, in a shape that broadcasts over its weight or its bias."""
    if parameter.dim() < 2 or stored_transposed(module):
        return values
    return values[:, None]


def widths(module: nn.Module) -> tuple[int, int]:
    """d_in and d_out of a linear module. Of a quantised one the weight's own shape does not say them."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    d_in, d_out = module.get_parameter("weight").shape
    return d_in, d_out
