"""SinLoRA (also SeqLoRA): one LoRA per module, trained on every task in turn.

Equation: y = W x + (alpha / r) B A x. State: A, B of the last stage. Nothing guards earlier tasks: it is the lower bound
of the LoRA methods in the tables of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.published import lora_settings
from raycl.methods.common.trained import OneLoraMethod


class SinLoraParams(LoraParams):
    """SinLoRA has the branch's shape and nothing else."""

    name: Literal["sin_lora"] = Field(default="sin_lora", description="one LoRA, trained on every task in turn")


class SinLora(OneLoraMethod[SinLoraParams]):
    """Train the same branch at every stage."""

    Params = SinLoraParams
    about = About(
        title="one LoRA trained on every task in turn (lower bound)",
        paper="baseline of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="A and B of one branch",
        growth="none: r (d_in + d_out) per adapted module, whatever T",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """O-LoRA's conventions; T5-Large lr 1e-3, Llama-2-7B lr 1e-4."""
        return lora_settings(family, order)
