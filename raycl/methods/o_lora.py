"""O-LoRA (arXiv 2310.14152): each new branch is pushed to be orthogonal to the row spaces of the earlier ones.

Loss: CE + lambda1 sum_layers ||A_old A_t^T||_1 + lambda2 sum_layers (||A_t||_F + ||B_t||_F), with A_old (K, d_in) the
stacked earlier down-projections; the first norm is the entrywise sum of absolute values, the others are unsquared, as in
the released code (cmnfriend/O-LoRA). Forward and state as IncLoRA. The paper's orientation of A is the transpose.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.fields import Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams, MixParams
from raycl.methods.common.published import is_t5, lora_settings
from raycl.state.stage_state import StageState

LONG6_LAMBDA1 = [0.0] + [0.5] * 8 + [5.0] * 6
LONG6_LAMBDA2 = [0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.3, 0.0, 0.1, 0.0, 0.0, 0.1, 0.0, 0.1, 0.3]
"""Per-task weights of the released script for order 6 (scripts/long.sh)."""


class OrthogonalParams(LoraParams):
    """Hyper-parameters of the orthogonality loss; each weight is one value or one per stage."""

    lambda1: Weight | list[Weight] = Field(
        default=0.5, description="weight of sum ||A_old A_t^T||_1 (O-LoRA, eq. 8); per stage"
    )
    lambda2: Weight | list[Weight] = Field(default=0.0, description="weight of sum (||A_t||_F + ||B_t||_F); per stage")

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """Both weights may change from stage to stage."""
        return super().per_stage_fields() | {"lambda1", "lambda2"}

    def inert(self, stage: int) -> frozenset[str]:
        """lambda1 has no effect at stage 1, where there is no earlier branch."""
        return super().inert(stage) | ({"lambda1"} if stage == 1 else set())


class OLoraParams(OrthogonalParams, MixParams):
    """O-LoRA's hyper-parameters."""

    name: Literal["o_lora"] = Field(default="o_lora", description="new branches orthogonal to the earlier ones")


class OLora(LoraMethod[OrthogonalParams]):
    """IncLoRA with the orthogonality loss."""

    Params = OLoraParams
    about = About(
        title="a new branch per task, pushed orthogonal to the earlier ones",
        paper="O-LoRA, arXiv 2310.14152",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        penalised="overlap of the new branch's rows with all earlier ones (entrywise L1), optionally its norms",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "The released scripts put `Task:` and `Dataset:` lines into every prompt, at test too, which reveals the task; "
            "off here, `data.reveal_task=true` restores it.",
            "Without DeepSpeed the released code adds the penalty to the loss after dividing the cross-entropy by the "
            "number of accumulation steps, so it is that many times too strong; here the weight does not depend on it.",
        ),
    )

    @classmethod
    def takes(cls, params: OrthogonalParams) -> bool:
        """Stages are branches; one from elsewhere overlaps with earlier ones as it may."""
        return True

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released scripts: per-task weights and two epochs of MNLI on order 6; lr 1e-3 first, then 1e-4, on Llama."""
        settings = lora_settings(family, order)
        if order == "long-6":
            settings["method"] |= {"lambda1": LONG6_LAMBDA1, "lambda2": LONG6_LAMBDA2}
            settings["train"] |= {"epochs": [1, 1, 2] + [1] * 12}
        if not is_t5(family):
            stages = {"std": 4, "long": 15, "sni": 15}.get(order.split("-")[0])
            settings["train"] |= {"lr": [1e-3] + [1e-4] * (stages - 1) if stages else 1e-4}
        return settings

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Also keep the earlier down-projections in fp32 for the loss."""
        super().install(backbone, state)
        old = state.branches
        self.old_a = {
            path: torch.cat([branch.a[path] for branch in old]).to(backbone.device)
            for path in self.branches.layers
            if old
        }

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The orthogonality and the norm term, where their weights are not 0."""
        lambda1 = at_stage(self.params.lambda1, self.info.stage)
        lambda2 = at_stage(self.params.lambda2, self.info.stage)
        terms = {}
        if self.old_a:
            terms["orthogonality"] = Penalty(self._overlap(), lambda1)
        if lambda2 > 0:
            terms["norm"] = Penalty(self._norms(), lambda2)
        return terms

    def _overlap(self) -> Tensor:
        """sum over layers and entries of |A_old A_t^T|; gradients reach A_t only."""
        layers = self.branches.layers
        with torch.autocast(self.branches.backbone.device.type, enabled=False):
            parts = [(self.old_a[path] @ layers[path].down.T).abs().sum() for path in layers]
            return torch.stack(parts).sum()

    def _norms(self) -> Tensor:
        """sum over layers of ||A_t||_F + ||B_t||_F."""
        weights = [weight for layer in self.branches.layers.values() for weight in (layer.down, layer.up)]
        return torch.stack([weight.norm() for weight in weights]).sum()
