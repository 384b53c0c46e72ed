"""MbPA++ (arXiv 1906.01076): a memory that is replayed now and then, and that the model adapts to before each answer.

One LoRA branch W = (A, B of all modules) trains on every task in turn; a few examples from the memory, `replayed` times as
many as the task has, are mixed into its own. After a stage a share of its examples, drawn evenly over the labels, enters the
memory for good: as text, which later stages replay, and as token ids, the values that an answer adapts to. Their keys are
features of the bare backbone (`raycl.adapters.base_features`), the same whatever the branch has learned.

Served, for each input x by itself, with x_1..x_K its nearest neighbours in the memory by the distance of the keys:

    W_x = argmin  lambda ||W' - W||^2 - (1/K) sum_k log p(y_k | x_k; W')      by L gradient steps of length eta, from W

and x is answered by W_x, which is then thrown away. log p is the mean over the tokens of an answer, so that one eta serves
labels and texts.

    training    examples (own rows, a draw from the memory) -> plain cross-entropy -> memorise (token ids of what is kept)
    served      serve: keys of all parts' rows -> condition: each row's neighbours -> L steps -> that row's A_x, B_x act in
                every pass over the batch, whatever is decoded (`raycl.adapters.local_weights`)

The rows of a batch are adapted one after another, K examples a step, so that W_x depends on x and the memory alone.
L = 0 is sparse replay without adaptation, the paper's REPLAY; `replayed` = 0 is the older MbPA (arXiv 1802.10542).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycl.adapters.backbone import IGNORE, Backbone, Inputs
from raycl.adapters.base_features import mean_embedding, mean_hidden
from raycl.adapters.local_weights import LocalWeights, Weights, descend
from raycl.adapters.predicting import precision, predicted
from raycl.adapters.token_rows import TokenRows, batch_of
from raycl.fields import PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.base import About, Carries, InPeft, Moments, Write
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.memory import budget, keep, records, remembered
from raycl.methods.common.published import lora_settings
from raycl.methods.common.rows import Read, Row, own_rows
from raycl.methods.common.trained import OneLoraMethod
from raycl.state.stage_state import StagePart, StageState
from raycl.tasks.stored import Joined, Picked
from raycl.tasks.task import Example

MEMORY = "memory/"
"""Prefix of a part's tensors: the token ids of what it keeps."""
ADAPTING = {"neighbours", "local_lr", "local_lambda", "features", "layer"}
"""What acts on the adaptation alone."""


class MbpaParams(LoraParams):
    """The branch's shape, the memory, and how an input is adapted to."""

    name: Literal["mbpa"] = Field(
        default="mbpa",
        description="one LoRA with a memory, adapted to the nearest examples before each answer (MbPA++)",
    )
    share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="share of a task's training examples that is kept, at least one (MbPA++: all)",
    )
    replayed: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="rows from the memory in an epoch, as a share of the task's own; one at least, unless 0 (MbPA++: 0.01)",
    )
    neighbours: PositiveInt = Field(default=4, description="K, examples that an input is adapted to (MbPA++: 32)")
    local_steps: int = Field(
        default=2,
        ge=0,
        description="L, gradient steps for each input; 0 = none, the trained branch answers (MbPA++: 30)",
    )
    local_lr: float = Field(
        default=0.01,
        gt=0,
        description="eta, length of these steps; the best one depends on the model",
    )
    local_lambda: Weight = Field(
        default=0.001, description="lambda, weight of the distance from the trained branch (MbPA++: 0.001)"
    )
    features: Literal["embeddings", "hidden"] = Field(
        default="embeddings",
        description="what makes a key of a prompt: the mean of its token embeddings, or of hidden states after `layer`",
    )
    layer: PositiveInt | None = Field(
        default=None, description="layer of the features `hidden`, from 1; none = a third of the depth"
    )

    def inert(self, stage: int) -> frozenset[str]:
        """A state is adapted where it is served; at stage 1 the memory is empty."""
        return super().inert(stage) | ADAPTING | {"local_steps"} | ({"replayed"} if stage == 1 else set())

    def adapted_rows(self) -> int:
        """K in each of L steps."""
        return self.neighbours * self.local_steps

    def serving(self) -> Json:
        """How an input is adapted to, without what is not read."""
        unread = ADAPTING if self.local_steps == 0 else {"layer"} if self.features == "embeddings" else set()
        return {name: getattr(self, name) for name in sorted({"local_steps", *ADAPTING} - unread)}


class Mbpa(OneLoraMethod[MbpaParams]):
    """SinLoRA with a memory, replayed in training and adapted to in serving."""

    Params = MbpaParams
    about = About(
        title="one LoRA trained in turn with a little replay, adapted to the nearest remembered examples before each answer",
        paper="MbPA++, arXiv 1906.01076; row of TRACE (arXiv 2310.06762)",
        trains="A and B of one branch; served, a copy of them anew for each input",
        growth="the memory: `share` of each task's examples, as text and as token ids",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "memory": "ids (n, W) int32: prompt and answer of the n examples kept, 0 behind them; lengths (n, 2) int32: "
            "how many tokens each of the two has",
        },
        replays="real",
        differences=(
            "The paper keeps every example that it sees; half of them cost little, and a tenth some. "
            "`method.share=1` keeps all.",
            "K = 4 and L = 2, not 32 and 30, so that a CPU gets through: an answer takes L passes forward and back over K "
            "examples. With K = 8 the packaged model (135M, bf16) took 9 seconds a step on two slow cores. "
            "`method.neighbours=32`, `method.local_steps=30`.",
            "All of BERT adapts in the paper; here the branch does, by plain gradient steps with a rate of its own, "
            "`method.local_lr`.",
            "Keys are means over a prompt in the frozen base model, the paper's the first token's state in a second, frozen "
            "BERT. Instructions are part of a prompt, so the nearest examples are mostly of the input's own task.",
            "Every 10,000 examples the paper takes one step on 100 from the memory; here a draw of that share is mixed into "
            "the batches of an epoch, and is the same in each epoch.",
            "TRACE's release makes keys with the model that trains, from a token that is the same in every prompt, takes "
            "the steps with the optimiser of the training and does not put the weights back.",
            "Meta-MbPA (arXiv 2010.02500) also trains the model to adapt well and chooses what it keeps; left out.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    @classmethod
    def carries(cls, params: MbpaParams) -> Carries:
        """Every part holds what it keeps of its own task."""
        return "all"

    @classmethod
    def in_peft(cls, params: MbpaParams) -> InPeft:
        """The last adapter, if no input changes it."""
        return "adapted" if params.local_steps else "last"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last branch, and open the memory; nothing adapts while it trains."""
        super().install(backbone, state)
        self.backbone = backbone
        self.memory = remembered(state, 1.0)
        self.local: LocalWeights | None = None

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The task's own examples and a draw from the memory; the loop shuffles them."""
        self.kept = keep(own, budget(own, self.params.share), self.info)
        most = budget(own, self.params.replayed) if self.params.replayed else 0
        order = torch.randperm(len(self.memory), generator=self.info.generator("replayed")).tolist()
        return Joined(own_rows(own), Picked(self.memory, sorted(order[:most])))

    def memorise(self, read: Read) -> None:
        """The token ids of what is kept."""
        self.values = read(self.kept)

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, and the task's own share of the memory."""
        part = super().consolidate(moments)
        values = {f"{MEMORY}{name}": tensor for name, tensor in self.values.tensors().items()}
        return StagePart(part.task, part.branch, part.tensors | values, part.facts)

    def facts(self) -> dict[str, Any]:
        """The examples that later stages replay."""
        return {"memory": records(self.kept)}

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The last stage's branch, and the keys of the whole memory if inputs are to be adapted to."""
        super().serve(backbone, state)
        self.backbone = backbone
        self.local = None
        if self.params.local_steps == 0:
            return
        self.values = reduce(add, [_values(part) for part in state.parts])
        self.keys = torch.stack([self._key(prompt) for prompt in self.values.prompts])
        self.local = LocalWeights(self.trainee.branches)

    def condition(self, inputs: Inputs) -> None:
        """Served: adapt a copy of the branch to each input of the batch. Training needs nothing."""
        if self.local is None:
            return
        prompts = [ids[real].tolist() for ids, real in zip(inputs.ids, inputs.prompt_mask.bool(), strict=True)]
        self.local.act([self._adapted(self.local, prompt) for prompt in prompts])

    @torch.no_grad()
    def _key(self, prompt: Sequence[int]) -> Tensor:
        """(D,), fp64: the features of a prompt in the bare backbone, read alone."""
        alone = batch_of([prompt], None, 0, self.backbone.encoder_decoder, self.backbone.device)
        with self.trainee.branches.off():
            if self.params.features == "embeddings":
                return mean_embedding(self.backbone, alone, alone.mask)[0]
            return mean_hidden(self.backbone, alone, alone.mask, self.params.layer)[0]

    @torch.inference_mode(False)
    def _adapted(self, local: LocalWeights, prompt: Sequence[int]) -> Weights:
        """W_x of the input x with these tokens, its answer left out."""
        places = nearest(self.keys, self._key(prompt), self.params.neighbours)
        inputs = self.values.batch(places, self.backbone.encoder_decoder, self.backbone.device)

        def loss(weights: Weights) -> Tensor:
            local.act([weights])
            return self._loss(inputs)

        how = self.params
        return descend(local.trained, loss, how.local_steps, how.local_lr, how.local_lambda)

    def _loss(self, inputs: Inputs) -> Tensor:
        """-(1/K) sum_k log p(y_k | x_k) with what acts now: a scalar, fp32."""
        assert inputs.labels is not None
        with precision(self.backbone, cache=False):
            fed = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
            logits, labels = predicted(self.backbone, fed, inputs.mask, inputs.labels)
        each = F.cross_entropy(logits.float().mT, labels, ignore_index=IGNORE, reduction="none")
        return (each.sum(dim=1) / (labels != IGNORE).sum(dim=1)).mean()


def nearest(keys: Tensor, key: Tensor, count: int) -> list[int]:
    """The places of the `count` rows of `keys` (n, D) that are nearest to `key` (D,), nearest first; all if there are fewer.

    Of rows that are as near as each other, the older one counts as nearer.
    """
    return (keys - key).square().sum(dim=1).argsort(stable=True)[:count].tolist()


def _values(part: StagePart) -> TokenRows:
    """What a part keeps."""
    found = part.tensors.items()
    return TokenRows.of({name.removeprefix(MEMORY): value for name, value in found if name.startswith(MEMORY)})
