"""SeqFT: all weights of one model, trained on every task in turn, with nothing that guards the earlier ones.

Equation: theta_t starts from theta_(t-1) and minimises the cross-entropy of task t. State: the weights after the stage.
It is the lower bound of the tables of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611). Its published rows
(28.5 on the standard suite) are very probably an artefact of the learning rate: MIGU measures 22.2 at lr 1e-3, 45.3 at
3e-4 and 76 at 1e-4 and below. Choose the learning rate before comparing with it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.published import full_settings
from raycl.methods.common.trained import TrainedMethod
from raycl.methods.common.weights import FullTrainee
from raycl.spec import MethodParams


class SeqFtParams(MethodParams):
    """SeqFT has no hyper-parameter of its own."""

    name: Literal["seq_ft"] = Field(default="seq_ft", description="all weights, trained on every task in turn")


class SeqFt(TrainedMethod[MethodParams, FullTrainee]):
    """Train all weights at every stage; `TrainedMethod` does all of it."""

    Params = SeqFtParams
    about = About(
        title="all weights trained on every task in turn (lower bound)",
        paper="baseline of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="all weights",
        growth="none: one copy of the weights, whatever T (every stage's copy is kept so that each can be scored again)",
        frozen="nothing",
        state={"weights": "every weight of the backbone, fp32, in its own shape"},
        mergeable=True,
        differences=(
            "The released baselines differ by 50 points with the learning rate; none is preset but 1e-4 (MIGU).",
        ),
    )

    def make_trainee(self) -> FullTrainee:
        """All weights."""
        return FullTrainee()

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """MIGU's learning rate for T5-Large; TRACE's for 7B models."""
        return full_settings(family)
