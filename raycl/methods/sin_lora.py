"""SinLoRA (also SeqLoRA): one LoRA per module, trained on every task in turn.

Equation: y = W x + (alpha / r) B A x. State: A, B of the last stage. Nothing guards earlier tasks: it is the lower bound
of the LoRA methods in the tables of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.methods.base import About
from raycl.methods.lora import LoraParams
from raycl.methods.trained import TrainedMethod
from raycl.methods.trainee import LoraTrainee, Trainee
from raycl.spec import Json


class SinLoraParams(LoraParams):
    """SinLoRA has the branch's shape and nothing else."""

    name: Literal["sin_lora"] = Field("sin_lora", description="one LoRA, trained on every task in turn")


class SinLora(TrainedMethod):
    """Train the same branch at every stage."""

    Params = SinLoraParams
    params: SinLoraParams
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

    def make_trainee(self) -> Trainee:
        """One LoRA branch."""
        return LoraTrainee(self.params.shape)


def lora_settings(family: str, order: str) -> Json:
    """Published settings of the plain LoRA baselines (O-LoRA and MIGU conventions; SLAO for Llama-2-7B).

    T5 is trained with its own dropout on, as its configuration says and the scripts leave it.
    """
    t5 = family in ("t5", "mt5")
    short = order.startswith("sni")
    return {
        "model": {"dropout": 0.1 if t5 else 0.0},
        "method": {"rank": 4 if short else 8, "alpha": 32.0, "dropout": 0.1},
        "train": {"lr": 1e-3 if t5 else 1e-4, "epochs": 1, "batch_size": 64, "weight_decay": 0.0},
    }
