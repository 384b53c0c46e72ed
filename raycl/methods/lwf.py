"""LwF, Learning without Forgetting (arXiv 1606.09282): the new branch may not change what the model said before the stage.

Model: y = W x + s sum_{i<=t} B_i A_i x, as IncLoRA; A_i (r, d_in), B_i (d_out, r), s = alpha / r; only A_t, B_t train.
Teacher: the same model without branch t, that is, as it was after stage t-1; no second copy of any weight.
Loss: token mean over the new task's answers of

    -log p(y)  +  lambda T^2 KL( p_teacher^(T) || p^(T) ),        p^(T) = softmax(logits / T),  T = 2

over the whole vocabulary, on the new task's inputs only: no example of an earlier task is kept. The teacher is run on the
same batch by a second forward pass without gradients. Since B_t = 0 at the start, the KL starts at exactly 0 where there
is no dropout. T^2 keeps the size of the gradients when T changes (Hinton et al., arXiv 1503.02531).

The name is that of a row of O-LoRA's tables (arXiv 2310.14152: 52.3 on the standard suite, 46.9 on the long one), whose
lambda and trained weights are not stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import IGNORE
from raycl.fields import Weight
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import lora_settings
from raycl.methods.common.teacher import as_teacher, distillation
from raycl.spec import Beside

if TYPE_CHECKING:
    from raycl.adapters.stacked_lora import StackedLora


class LwfParams(LoraParams):
    """LwF's hyper-parameters."""

    name: Literal["lwf"] = Field(
        default="lwf", description="a new branch per task, distilled from the model before the stage"
    )
    weight: Weight = Field(
        default=1.0, description="lambda, weight of T^2 KL(before || now); 1 in LwF, not stated in O-LoRA's tables"
    )
    temperature: float = Field(default=2.0, gt=0, description="T, temperature of both distributions (LwF: 2)")

    def inert(self, stage: int) -> frozenset[str]:
        """At stage 1 there is no earlier task to distil."""
        return super().inert(stage) | ({"weight", "temperature"} if stage == 1 else set())

    def beside(self, stage: int, answer: int) -> Beside:
        """The teacher's pass, from stage 2 on."""
        return Beside(read=(1.0,) if stage > 1 and self.weight > 0 else ())


class Lwf(LoraMethod[LwfParams]):
    """IncLoRA with distillation from the model before the stage."""

    Params = LwfParams
    about = About(
        title="a new branch per task, distilled from the model before the stage on the new inputs",
        paper="LwF, arXiv 1606.09282; row LwF of O-LoRA (arXiv 2310.14152)",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        penalised="from stage 2: T^2 KL(model before the stage || model), over the answer tokens of the new task",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "LwF is for classifiers with a head per task; for text the distribution is that over the vocabulary at "
            "every answer token.",
            "The weights of the published row are not stated; here a new LoRA branch per task.",
            "The KL has the factor T^2 (Hinton), which LwF leaves out; `method.weight` can undo it.",
            "The teacher is run with dropout off. TRACE's code swaps the two distributions and reads stored logits by "
            "step number under shuffling; here the teacher sees the very batch.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The distillation term, from the second stage on and where its weight is not 0."""
        if self.info.stage == 1 or self.params.weight == 0:
            return {}
        with as_teacher(self.branches.backbone.model):
            self.branches.mix_by(without_current)
            try:
                teacher = step.run(step.inputs)
            finally:
                self.branches.mix_by(None)
        answers = step.labels != IGNORE
        temperature = self.params.temperature
        divergence = distillation(teacher[answers], step.logits[answers], temperature)
        return {"distillation": Penalty(temperature**2 * divergence / step.tokens, self.params.weight)}


def without_current(layer: StackedLora, old: Tensor | None, new: Tensor) -> Tensor:
    """A mixer that leaves all branches but the newest as they are: weights 1, ..., 1, 0, shape (1, 1, T)."""
    weights = new.new_ones(1, 1, len(layer.frozen_ranks) + 1)
    weights[..., -1] = 0
    return weights
