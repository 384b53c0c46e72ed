"""C-LoRA (Smith et al. 2023, arXiv 2304.06027): a new branch may not change what earlier ones have changed, entry by entry.

At stage t, in an adapted module with weight W (d_out, d_in), A_i (r, d_in), B_i (d_out, r) and s = alpha / r:

    y = W x + sum_{i<=t} s B_i A_i x
    loss = CE + lambda sum_modules || |sum_{i<t} s B_i A_i| * s B_t A_t ||_F^2

with |.| and * entrywise. The earlier branches are frozen; A_t starts Kaiming-uniform, B_t at 0. An entry of W that
earlier tasks moved far is costly to move again, one that they left alone is free. Because the norm is squared, |.| has no
effect on its value. This is not the later C-LoRA of arXiv 2502.17920, which routes one shared pair through an r x r matrix.

Scale. The term has the fourth power of the size of an update, summed over all entries, so lambda must be found anew for
every model, learning rate and alpha. The log shows term, weighted term and their ratio to the loss as `forgetting`; a
ratio between 0.01 and 1 after the first steps of stage 2 is where lambda has an effect and the task can still be learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from raycl.fields import Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.products import per_module
from raycl.methods.common.published import is_t5, lora_settings

if TYPE_CHECKING:
    from raycl.adapters.stacked_lora import StackedLora

T5, LLAMA = 1e2, 1e6
"""Estimates of lambda for T5-Large and for models of 7B, see the field's description."""


class CLoraParams(LoraParams):
    """C-LoRA's hyper-parameters."""

    name: Literal["c_lora"] = Field(
        default="c_lora", description="entries that earlier branches changed are costly to change"
    )
    forgetting: Weight | list[Weight] = Field(
        default=T5,
        description="lambda, weight of the squared norm; per stage. The paper's 1e8 is for diffusion models. The default "
        "is an estimate for T5-Large at lr 1e-3 and alpha / rank = 4, where updates of about 4e-3 an entry make the term "
        "about 0.04; at lr 1e-4 on a 7B model it is about 1e-6 and 1e6 is the estimate. Not tuned",
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """lambda may change from stage to stage."""
        return super().per_stage_fields() | {"forgetting"}

    def inert(self, stage: int) -> frozenset[str]:
        """lambda has no effect at stage 1, where there is no earlier branch."""
        return super().inert(stage) | ({"forgetting"} if stage == 1 else set())


class CLora(LoraMethod[CLoraParams]):
    """IncLoRA with the entrywise penalty."""

    Params = CLoraParams
    about = About(
        title="a new branch per task, kept off the weight entries that earlier ones changed",
        paper="C-LoRA, arXiv 2304.06027 (Smith et al. 2023)",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        penalised="the entrywise product of the new update and the sum of all earlier ones (squared Frobenius norm)",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "The paper adapts keys and values of a diffusion model's cross-attention and learns a token per concept; here "
            "`method.targets`, by default query and value, and no tokens, as in its image classification experiments.",
            "The paper's branches are not scaled; with alpha / rank = s the term grows by s^4: `method.alpha` = "
            "`method.rank` gives its form.",
            "The paper's lambda for diffusion models, 1e8, could not be checked against its text; `method.forgetting` has "
            "an estimate for language models, which is not tuned.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA, with an estimate of lambda: there are no published settings for language models."""
        settings = lora_settings(family, order)
        settings["method"] |= {"forgetting": T5 if is_t5(family) else LLAMA}
        return settings

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The entrywise overlap with the earlier branches, from the second stage on."""
        if self.branches.count == 1:
            return {}
        return {"forgetting": Penalty(self._overlap(), at_stage(self.params.forgetting, self.info.stage))}

    def _overlap(self) -> Tensor:
        """The sum over modules of || (sum s B_i A_i) * s B_t A_t ||_F^2, frozen branches as they act in the forward pass."""
        scale = self.params.alpha / self.params.rank

        def overlap(path: str, layer: StackedLora) -> Tensor:
            old = layer.frozen_b.float() @ layer.frozen_a.float()
            return (old * (layer.up @ (scale * layer.down))).square().sum()

        return per_module(self.branches, overlap).sum()
