"""EWC (arXiv 1612.00796): moving a weight costs in proportion to how much earlier tasks depend on it.

Let theta be the trainable weights (A and B of one LoRA branch, or all of the model), theta*_j weight j as the last stage
left it, and F_j >= 0 its importance so far. Stage t starts from theta = theta* and minimises

    CE + (lambda / 2) sum_j F_j (theta_j - theta*_j)^2 .

The penalty is 0 at the start of a stage; stage 1 has none. Importance is carried in the online form (arXiv 1805.06370),

    F <- gamma F + F_t ,    theta* <- theta at the end of stage t ,

so the state does not grow with the number of tasks. F and theta* have the shapes of the weights. F_t is one of

    fisher    F_t = (1/n) sum_x (d log p(y|x) / d theta)^2 : the diagonal of the empirical Fisher information, from a pass
              over n examples of the task after its training, example by example, without dropout and without the
              penalty's gradient; log p(y|x) is the sum over the answer's tokens;
    history   F_t = (1/S) sum_s g_s^2 : g_s is the gradient of the cross-entropy (a token mean) over the global batch of
              optimizer step s of S, the penalty's part lambda F (theta - theta*) taken off. Costs no pass. On a LoRA
              branch this is a penalty on the low-rank matrices weighted by historical gradients, as in arXiv 2512.09910.

The two differ by orders of magnitude (a squared mean of gradients is far below the mean of their squares, the more so
the larger the batch), so a lambda that suits one does not suit the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.adapters.importance import MeanSquare
from raycl.fields import PositiveInt, Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Gradients, Moments, Observes, Penalty, Step, When
from raycl.methods.common.published import full_settings
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import TrainedParams
from raycl.state.stage_state import StagePart, StageState

FISHER = "fisher/"
"""Prefix of a part's tensors: the importance F of each trained weight, by its name."""


class EwcParams(TrainedParams):
    """EWC's hyper-parameters."""

    name: Literal["ewc"] = Field(default="ewc", description="moving weights that matter to earlier tasks costs")
    weight: Weight | list[Weight] = Field(
        default=400.0,
        description="lambda in (lambda/2) sum F (theta - theta*)^2, dimensionless; TRACE's released setting is 400; "
        "choose it anew with `importance`; per stage",
    )
    importance: Literal["fisher", "history"] = Field(
        default="fisher", description="F_t: from a pass after training, or from the gradients of the training steps"
    )
    fisher_examples: PositiveInt = Field(
        default=1000,
        description="with importance=fisher: at most so many training examples in the pass, drawn at random",
    )
    gamma: float = Field(
        default=1.0, ge=0, le=1, description="share of the earlier tasks' importance that a stage keeps"
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """The weight may change from stage to stage."""
        return super().per_stage_fields() | {"weight"}

    def inert(self, stage: int) -> frozenset[str]:
        """At stage 1 there is nothing to keep; the history needs no pass."""
        first = {"weight", "gamma"} if stage == 1 else set()
        unread = {"fisher_examples"} if self.importance == "history" else set()
        return super().inert(stage) | first | unread


class Ewc(LoraOrFullMethod[EwcParams]):
    """Train the last weights under the penalty; hand on the weights and their importance."""

    Params = EwcParams
    about = About(
        title="a quadratic penalty on moving weights that earlier tasks depend on",
        paper="EWC, arXiv 1612.00796, in its online form (arXiv 1805.06370); with importance=history arXiv 2512.09910",
        trains="one LoRA branch (`trains=lora`) or all weights (`trains=full`)",
        growth="none: the weights and as many importances, whatever T",
        penalised="moves away from the last stage's weights, each weighted by its importance",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module: theta*",
            "weights": "with trains=full: every weight of the backbone, fp32, in its own shape: theta*",
            "fisher": "the importance F of every trained weight, fp32, in its shape",
        },
        mergeable=True,
        differences=(
            "One online F instead of a pair (F_i, theta*_i) per task, as in the first paper; older anchors are lost.",
            "TRACE's released code squares the gradients of its training batches, the penalty's own included, averages them "
            "over an epoch's batches but adds up the epochs, and takes one worker's only: `method.importance=history` is "
            "the nearest to it, the mean over all steps with the penalty's part taken off.",
            "`importance=history` follows the abstract of arXiv 2512.09910 (a penalty on the low-rank matrices, weighted by "
            "historical gradient information); the paper's exact formula and its weight could not be checked.",
            "The lambda behind the EWC rows of O-LoRA's and AM-LoRA's tables is not stated; `method.weight`.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """All weights, with SeqFT's learning rates and TRACE's lambda."""
        return full_settings(family) | {"method": {"trains": "full", "weight": 400.0}}

    @classmethod
    def passes(cls, params: EwcParams) -> Mapping[When, Observes]:
        """One after training for the Fisher information."""
        return {"after": "gradients"} if params.importance == "fisher" else {}

    @property
    def follows_gradients(self) -> bool:
        """The history is made of them."""
        return self.params.importance == "history"

    @property
    def observes(self) -> Observes:
        """The Fisher information is made of gradients, example by example."""
        return "gradients"

    @property
    def pass_examples(self) -> int:
        """As many as the hyper-parameters say."""
        return self.params.fisher_examples

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last weights, which are also the anchor, and take up their importance."""
        super().install(backbone, state)
        self.weight = at_stage(self.params.weight, self.info.stage)
        self.squares = {name: MeanSquare(parameter) for name, parameter in self.trainee.parameters().items()}
        last = state.last
        self.fisher = _on(backbone, _fisher(last)) if last else {}
        self.anchor = _on(backbone, self.trainee.values(last)) if last else {}

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """(1/2) sum F (theta - theta*)^2, from the second stage on."""
        if not self.fisher or self.weight == 0:
            return {}
        weights = self.trainee.parameters()
        terms = [(self.fisher[name] * (weights[name] - self.anchor[name]).square()).sum() for name in self.fisher]
        return {"ewc": Penalty(torch.stack(terms).sum() / 2, self.weight)}

    def gradients(self, gradients: Gradients) -> None:
        """Add the cross-entropy's part of a global batch's gradient to the history."""
        for name, parameter in self.trainee.parameters().items():
            gradient = gradients.get(parameter)
            if gradient is not None and self.fisher and self.weight > 0:
                moved = parameter.detach() - self.anchor[name]
                gradient = gradient - self.weight * self.fisher[name] * moved
            self.squares[name].add(gradient)

    def running(self) -> dict[str, Tensor]:
        """The history so far."""
        if not self.follows_gradients:
            return {}
        totals = {f"total/{name}": square.total for name, square in self.squares.items()}
        return totals | {f"count/{name}": square.count for name, square in self.squares.items()}

    def collect(self, when: When) -> Moments | None:
        """A pass after training, where it is the Fisher information that counts."""
        return self.squares if when == "after" and self.params.importance == "fisher" else None

    def observe_gradients(self) -> None:
        """Count one example's gradient."""
        for name, parameter in self.trainee.parameters().items():
            self.squares[name].add(parameter.grad)

    def consolidate(self, moments: Moments) -> StagePart:
        """The trained weights, and F = gamma F + F_t."""
        part = super().consolidate(moments)
        fisher = {f"{FISHER}{name}": self._importance(name).cpu().contiguous() for name in self.squares}
        return StagePart(part.task, part.branch, part.tensors | fisher, part.facts)

    def _importance(self, name: str) -> Tensor:
        """F of one weight tensor after this stage."""
        new = self.squares[name].value
        return new + self.params.gamma * self.fisher[name] if self.fisher else new


def _fisher(part: StagePart) -> dict[str, Tensor]:
    """The importance in a part, by the weights' names."""
    return {name.removeprefix(FISHER): value for name, value in part.tensors.items() if name.startswith(FISHER)}


def _on(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the backbone's device."""
    return {name: value.to(backbone.device) for name, value in tensors.items()}
