"""MTL: one joint training run over the shuffled union of all tasks, the upper bound that sees all data at once.

Equation: theta minimises the cross-entropy over D_1 and ... and D_T. One stage, as many optimizer steps as the stages of a
sequence have together, and one row of scores. Source: row MTL of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.published import full_settings
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import TrainedParams


class MtlParams(TrainedParams):
    """What the joint model trains: a LoRA branch, or all weights as in the published rows."""

    name: Literal["mtl"] = Field(default="mtl", description="one stage on all tasks at once")


class Mtl(LoraOrFullMethod[MtlParams]):
    """Nothing but the union of the tasks sets it apart."""

    Params = MtlParams
    joint = True
    about = About(
        title="one joint stage on the union of all tasks (upper bound, no sequence)",
        paper="row MTL of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="one LoRA branch (`trains=lora`) or all weights (`trains=full`)",
        growth="none",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "weights": "with trains=full: every weight of the backbone, fp32, in its own shape",
        },
        replays="all data",
        mergeable=True,
        differences=("The published rows train all weights, with unknown settings: `method.trains=full`.",),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """All weights, as published; learning rates as for SeqFT."""
        return full_settings(family) | {"method": {"trains": "full"}}
