"""Replay: keep a few examples of every task and mix them into the training of the later ones.

Loss: the token mean over D_t and memory of -w log p, with w = `weight` on replayed rows. After a stage, a share of its
examples, drawn evenly over the labels, enters the memory for good. Source: row Replay of O-LoRA (arXiv 2310.14152) and
AM-LoRA (arXiv 2409.19611); its buffer size is not stated there. 2 % a task is MIGU's, 10 % TRACE's.

With `answers=model` (On-Policy Replay, arXiv 2605.29495) the memory holds prompts with the model's own greedy answers, so
that what is rehearsed is what the model does and not what the data say. After the stage the trained model answers
`candidates` times as many prompts as are to be kept; the best answers by the task's metric stay, never more than `share`
allows, among equals evenly over the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from raycl.adapters.backbone import Backbone
from raycl.fields import InKeyUnlessDefault, PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.answers import Ask
from raycl.methods.common.base import About, Write
from raycl.methods.common.memory import best, budget, keep, records, remembered
from raycl.methods.common.published import full_settings
from raycl.methods.common.rows import Row, own_rows
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import TrainedParams
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
    answers: Annotated[Literal["data", "model"], InKeyUnlessDefault()] = Field(
        default="data",
        description="answers in the memory: the data's, or the model's own after the task's stage, where they score best",
    )
    candidates: Annotated[PositiveInt, InKeyUnlessDefault()] = Field(
        default=4, description="prompts that the model answers for each that is kept (`answers=model`)"
    )

    def inert(self, stage: int) -> frozenset[str]:
        """The weight of replayed rows has no effect at stage 1, where the memory is empty; nobody answers for the data."""
        idle = {"weight"} if stage == 1 else set()
        return super().inert(stage) | idle | ({"candidates"} if self.answers == "data" else set())


class Replay(LoraOrFullMethod[ReplayParams]):
    """Train on the task and the memory; keep a sample of the task."""

    Params = ReplayParams
    about = About(
        title="a memory of a few real examples per task, mixed into later stages",
        paper="row Replay of O-LoRA (arXiv 2310.14152) and AM-LoRA (arXiv 2409.19611); `answers=model`: arXiv 2605.29495",
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
            "On-Policy Replay's release has the newest model answer all training prompts of all tasks so far after every "
            "stage, at temperature 0.1, and shares one fixed buffer out over the tasks. Here a task's prompts are answered "
            "once, right after its own stage, greedily, `method.candidates` for each that is kept; its share stays.",
            "Only the scores by the task's metric are there, not the release's variant by the model's own confidence; an "
            "answer that ran into the limit of tokens comes after all that ended.",
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
        self.score: float | None = None

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The task's own examples and the memory; the loop shuffles them."""
        self.most = budget(own, self.params.share)
        times = self.params.candidates if self.params.answers == "model" else 1
        self.kept = keep(own, times * self.most, self.info)
        return Joined(own_rows(own), self.memory)

    def recite(self, ask: Ask) -> None:
        """Take the model's own answers into the memory, those that score best."""
        if self.params.answers == "data":
            return
        answered = ask(self.kept)
        chosen = best(self.kept, answered, self.most, self.info)
        self.kept = [replace(self.kept[index], answers=(answered[index].text,)) for index in chosen]
        self.score = sum(answered[index].score for index in chosen) / len(chosen)

    def measures(self) -> dict[str, float]:
        """Once the model has answered, the mean score of what is kept, 0 to 100."""
        return {} if self.score is None else {"memory_score": self.score}

    def facts(self) -> dict[str, Any]:
        """The examples that later stages replay."""
        return {"memory": records(self.kept)}
