"""IncLoRA: a new LoRA branch per task, earlier ones frozen, outputs summed.

Equation: y = W x + s sum_{i<=t} B_i A_i x. State: all branches. It is O-LoRA with both lambdas 0. Served, branch i may
have a weight c_i of the user's (`mix`, arXiv 2512.09910): y = W x + s sum_{i<=t} c_i B_i A_i x.
Source: baseline of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.lora import LoraMethod, MixParams
from raycl.methods.common.published import lora_settings


class IncLoraParams(MixParams):
    """IncLoRA has the branch's shape and the weights of the branches when served."""

    name: Literal["inc_lora"] = Field(default="inc_lora", description="a new LoRA branch per task, summed")


class IncLora(LoraMethod[IncLoraParams]):
    """Train a new branch on top of the frozen ones; `LoraMethod` does all of it."""

    Params = IncLoraParams
    about = About(
        title="a new LoRA branch per task, outputs summed",
        paper="baseline of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
    )

    @classmethod
    def takes(cls, params: IncLoraParams) -> bool:
        """Stages are branches on their own."""
        return True

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)
