"""N-LoRA (arXiv 2410.10179): updates so sparse that two of them seldom move the same entry of a weight.

    y = W x + sum_{i<=t} s B_i A_i x,    loss = CE + lambda sum_modules || B_t A_t ||_1

with the entrywise sum of absolute values of the update (d_out, d_in), without the scale s. What two updates both move is
where they can hurt each other; updates that share no entry are also orthogonal, but not the other way round. The released
code (PKU-YuanGroup/N-LoRA) multiplies the factors in the other order, || A_t B_t ||_1 of an (r, r) matrix, which exists for
square modules only, can be 0 for any update, and makes no update sparse: `penalty=ab_l1`. The published figures are of that.

A subgradient under Adam makes no entry exactly 0; what falls is the size of those that the task does not need.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.fields import Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.products import per_module
from raycl.methods.common.published import is_t5, lora_settings
from raycl.state.stage_state import StageState

RELEASED = {"long-4": (5e-4, 0.4), "long-5": (8e-4, 0.55), "long-6": (1e-3, 1.8)}
"""Order -> learning rate and lambda of the released scripts for T5-Large; on order 4 seven tasks have 1.2 there."""


class NLoraParams(LoraParams):
    """N-LoRA's hyper-parameters."""

    name: Literal["n_lora"] = Field(default="n_lora", description="a new sparse branch per task")
    sparsity: Weight | list[Weight] = Field(
        default=1e-5,
        description="lambda, weight of the L1 norm, summed over modules; per stage. The default is an estimate for "
        "`delta_l1`; `ab_l1` of the release goes with 0.4 to 1.8",
    )
    penalty: Literal["delta_l1", "ab_l1"] = Field(
        default="delta_l1",
        description="the norm of B A as the paper has it, or of A B as the release does, for square modules",
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """lambda may change from stage to stage."""
        return super().per_stage_fields() | {"sparsity"}


class NLora(LoraMethod[NLoraParams]):
    """IncLoRA with an L1 norm on each new update."""

    Params = NLoraParams
    about = About(
        title="a new branch per task, made sparse so that updates seldom meet",
        paper="N-LoRA, arXiv 2410.10179",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        penalised="the L1 norm of the new update",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "The release penalises A B, an (r, r) matrix, and the published figures are of that; `method.penalty=ab_l1`.",
            "The release adds the penalty undivided in every micro-step, so it is as many times too strong; here it is a "
            "term of the step.",
            "The released prompts name task and data set; off here, `data.reveal_task=true` restores it.",
            "The epochs of the long orders and the strengths for Llama were not read: one epoch, and for families other "
            "than T5 the paper's norm with an estimate of lambda.",
        ),
    )

    @classmethod
    def takes(cls, params: NLoraParams) -> bool:
        """Stages are branches on their own."""
        return True

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released scripts for T5-Large: ten epochs on the standard orders, one on the long ones."""
        settings = lora_settings(family, order)
        if not is_t5(family):
            return settings
        lr, strength = RELEASED.get(order, (1e-3, 0.4))
        settings["method"] |= {"penalty": "ab_l1", "sparsity": strength}
        settings["train"] |= {
            "lr": lr,
            "batch_size": 48 if order == "std-1" else 32,
            "epochs": 1 if order in RELEASED else 10,
        }
        return settings

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Raises ValueError for the release's norm on a module that is not square."""
        super().install(backbone, state)
        for path, layer in self.branches.layers.items():
            d_out, d_in = len(layer.up), layer.down.shape[1]
            if self.params.penalty == "ab_l1" and d_in != d_out:
                raise ValueError(
                    f"method.penalty: ab_l1 multiplies A and B, which needs as many inputs as outputs, and {path} has "
                    f"{d_in} and {d_out}; take delta_l1, or adapt square modules (method.targets)"
                )

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The L1 norm, where its weight is not 0."""
        weight = at_stage(self.params.sparsity, self.info.stage)
        return {"sparsity": Penalty(self._norm(), weight)} if weight > 0 else {}

    def _norm(self) -> Tensor:
        """The sum over modules."""
        norm = delta_l1 if self.params.penalty == "delta_l1" else ab_l1
        return per_module(self.branches, lambda path, layer: norm(layer.down, layer.up)).sum()


def delta_l1(down: Tensor, up: Tensor) -> Tensor:
    """|| B A ||_1 of one module."""
    return (up @ down).abs().sum()


def ab_l1(down: Tensor, up: Tensor) -> Tensor:
    """|| A B ||_1 of one square module."""
    return (down @ up).abs().sum()
