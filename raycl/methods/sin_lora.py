"""SinLoRA (also SeqLoRA): one LoRA per module, trained on every task in turn.

Equation: y = W x + (alpha / r) B A x. State: A, B of the last stage. Nothing guards earlier tasks: it is the lower bound
of the LoRA methods in the tables of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import Branches
from raycl.methods.lora import LoraMethod, LoraParams
from raycl.spec import Json
from raycl.state.stage_state import StageState


class SinLoraParams(LoraParams):
    """SinLoRA has the branch's shape and nothing else."""

    name: Literal["sin_lora"] = Field("sin_lora", description="one LoRA, trained on every task in turn")


class SinLora(LoraMethod):
    """Train the same branch at every stage."""

    Params = SinLoraParams
    title = "one LoRA trained on every task in turn (lower bound)"
    paper = "baseline of O-LoRA and AM-LoRA"

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """O-LoRA's conventions; T5-Large lr 1e-3, Llama-2-7B lr 1e-4."""
        return lora_settings(family, order)

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last branch, or start one."""
        last = state.last.branch if state.last else None
        self.branches = Branches(backbone, self.params.shape, [])
        self.branches.start(last and last.a, last and last.b, self.info.generator("branch"))

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """Only the newest branch: it contains the earlier ones."""
        self.serve_branches(backbone, state.branches[-1:])


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
