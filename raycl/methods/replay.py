"""Replay: keep a few examples of every task and mix them into the training of the later ones.

Loss: the token mean over D_t and memory of -w log p, with w = `weight` on replayed rows. After a stage, a share of its
examples, drawn evenly over the labels, enters the memory for good. Source: row Replay of O-LoRA (arXiv 2310.14152) and
AM-LoRA (arXiv 2409.19611); its buffer size is not stated there. 2 % a task is MIGU's, 10 % TRACE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from raycl.adapters.backbone import Backbone
from raycl.files import Json
from raycl.methods.common.base import About, Write
from raycl.methods.common.memory import keep, records, remembered
from raycl.methods.common.published import full_settings
from raycl.methods.common.rows import Row, own_rows
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import TrainedParams
from raycl.spec import Weight
from raycl.state.stage_state import StageState
from raycl.tasks.stored import Joined
from raycl.tasks.task import Example


class ReplayParams(TrainedParams):
    """Replay's hyper-parameters."""

    name: Literal["replay"] = Field(default="replay", description="a memory of real examples, mixed into later stages")
    share: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="share of a task's training examples that is kept, at least one (MIGU 0.02, TRACE 0.1)",
    )
    weight: Weight = Field(default=1.0, description="weight of replayed rows in the cross-entropy")

    def inert(self, stage: int) -> frozenset[str]:
        """The weight of replayed rows has no effect at stage 1, where the memory is empty."""
        return super().inert(stage) | ({"weight"} if stage == 1 else set())


class Replay(LoraOrFullMethod[ReplayParams]):
    """Train on the task and the memory; keep a sample of the task."""

    Params = ReplayParams
    about = About(
        title="a memory of a few real examples per task, mixed into later stages",
        paper="row Replay of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611)",
        trains="one LoRA branch (`trains=lora`) or all weights (`trains=full`)",
        growth="the memory: `share` of each task's examples, as text",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "weights": "with trains=full: every weight of the backbone, fp32, in its own shape",
        },
        replays="real",
        mergeable=True,
        differences=(
            "The published rows do not state their buffer size or what they train; `method.share`, `method.trains`.",
            "TRACE also mixes in a general instruction set; left out.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """All weights, with SeqFT's learning rates."""
        return full_settings(family) | {"method": {"trains": "full"}}

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last weights, and open the memory."""
        super().install(backbone, state)
        self.memory = remembered(state, self.params.weight)

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The task's own examples and the memory; the loop shuffles them."""
        self.kept = keep(own, self.params.share, self.info)
        return Joined(own_rows(own), self.memory)

    def facts(self) -> dict[str, Any]:
        """The examples that later stages replay."""
        return {"memory": records(self.kept)}
