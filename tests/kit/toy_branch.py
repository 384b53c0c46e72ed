"""A method whose part holds a LoRA branch although its hyper-parameters say nothing about a branch's shape.

Equation: y = W x + 2 B A x, one branch of rank 2 trained on every task in turn.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.adapters.branches import LoraShape
from raycl.methods.common.base import About
from raycl.methods.common.trained import TrainedMethod
from raycl.methods.common.weights import LoraTrainee
from raycl.spec import MethodParams


class FixedParams(MethodParams):
    """No hyper-parameters."""

    name: Literal["fixed"] = Field(default="fixed", description="one branch of rank 2")


class FixedBranch(TrainedMethod[FixedParams, LoraTrainee]):
    """Train a branch of a shape of its own."""

    Params = FixedParams
    about = About("one branch of rank 2", "none", "A and B", "none", state={"branch": "A (2, d_in), B (d_out, 2)"})

    def make_trainee(self) -> LoraTrainee:
        """Rank 2, alpha 4."""
        return LoraTrainee(LoraShape(rank=2, alpha=4.0))
