"""PerTaskFT: a model of its own for every task, always trained from the untouched backbone.

Equation: theta_t minimises the cross-entropy of task t from theta_0; a[t][i] is the score of model i, so nothing is
forgotten by construction. It needs the task id at test. It gives the single-task scores s_i that forward transfer and
intransigence are measured against. Source: row PerTaskFT of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.adapters.backbone import Backbone
from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.published import full_settings
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import LoraTrainee, TrainedParams
from raycl.state.stage_state import Branch, StageState


class PerTaskParams(TrainedParams):
    """What each task's model trains: a LoRA branch, or all weights as in the published rows."""

    name: Literal["per_task"] = Field(default="per_task", description="a model of its own for every task")


class PerTask(LoraOrFullMethod[PerTaskParams]):
    """Start every stage from the backbone."""

    Params = PerTaskParams
    needs_task_id = True
    about = About(
        title="a model (LoRA branch or all weights) of its own for every task; task id at test",
        paper="row PerTaskFT of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="a fresh LoRA branch (`trains=lora`) or all weights (`trains=full`)",
        growth="one branch, or one copy of all weights, per task",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "weights": "with trains=full: every weight of the backbone, fp32, in its own shape",
        },
        mergeable=True,
        differences=("The published rows train all weights, with unknown settings: `method.trains=full`.",),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """All weights, as published; learning rates as for SeqFT."""
        return full_settings(family) | {"method": {"trains": "full"}}

    @classmethod
    def alone(cls, params: PerTaskParams) -> bool:
        """A task's model knows of no other task."""
        return True

    @classmethod
    def takes(cls, params: PerTaskParams) -> bool:
        """A branch, where branches are trained."""
        return params.trains == "lora"

    def take(self, branch: Branch) -> None:
        """As the branch that trains."""
        if isinstance(self.trainee, LoraTrainee):
            self.trainee.branches.take(branch, self.params.shape)

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Fresh weights, whatever came before."""
        super().install(backbone, StageState())
