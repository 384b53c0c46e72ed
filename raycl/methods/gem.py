"""GEM, gradient episodic memory (arXiv 1706.08840), and A-GEM (arXiv 1812.00420): no step may raise the memory's loss.

One LoRA branch trains on every task in turn; theta (P,) are its A and B of all modules as one vector, g the gradient of the
token mean over the new task's rows of a global batch, and g_k that of -log p summed over the batch's rows from the memory of
task k < t. g is replaced by the nearest vector that opposes none of them,

    g' = argmin || g' - g ||^2   such that  <g', g_k> >= 0 for all k < t,      g' = g + sum_k v_k g_k,  v >= 0,

v from the dual, a non-negative least-squares problem with t - 1 unknowns. `average` (A-GEM) has one constraint in the place
of t - 1, from all rows of memory in the batch, whose v is max(0, -<g, m> / <m, m>).

After a stage, a share of its examples, drawn evenly over the labels, enters the memory for good. An epoch goes through the
memory `repeats` times, its rows mixed among the task's own; they count nothing in the loss. A step whose batch has no row of
a task is not constrained by it. Each g_k is one more pass, forward and back, over the rows of task k in the batch, by the
worker that holds them, and is summed over the workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycl.adapters.backbone import IGNORE, Backbone
from raycl.adapters.gradient_cone import multipliers
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, Gradients, Penalty, Step, Write
from raycl.methods.common.flat import Flat
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.memory import budget, keep, records, remembered
from raycl.methods.common.published import lora_settings
from raycl.methods.common.rows import Row, own_rows
from raycl.methods.common.trained import OneLoraMethod
from raycl.state.stage_state import StageState
from raycl.tasks.stored import Joined
from raycl.tasks.task import Example


class GemParams(LoraParams):
    """The branch's shape, the memory, and how many constraints it makes."""

    name: Literal["gem"] = Field(
        default="gem", description="one LoRA, whose gradients oppose none of those on a memory of earlier tasks"
    )
    share: float = Field(
        default=0.02, gt=0, le=1, description="share of a task's training examples that is kept, at least one"
    )
    repeats: PositiveInt = Field(
        default=4,
        description="how often an epoch goes through the memory: a step constrains where its batch has rows of it",
    )
    average: bool = Field(
        default=False, description="one constraint, from all rows of memory in a batch (A-GEM), not one per task"
    )

    def inert(self, stage: int) -> frozenset[str]:
        """At stage 1 the memory is empty."""
        return super().inert(stage) | ({"repeats", "average"} if stage == 1 else set())

    def trains_matrices(self) -> bool:
        """Orthogonalised as a whole, an update need not obey the constraints."""
        return False

    def passes_are_equal(self) -> bool:
        """A worker takes as many passes as its rows ask for."""
        return False


class Gem(OneLoraMethod[GemParams]):
    """SinLoRA with gradients held to the memory's."""

    Params = GemParams
    about = About(
        title="one LoRA trained in turn, its gradients turned so that none raises the loss on a memory",
        paper="GEM, arXiv 1706.08840; A-GEM, arXiv 1812.00420 (`average=true`); row of TRACE (arXiv 2310.06762)",
        trains="A and B of one branch",
        growth="the memory: `share` of each task's examples, as text; the served model does not grow",
        projected="from stage 2, the gradient of all trained weights as one vector, onto the cone that no gradient on the "
        "memory opposes",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        replays="real",
        mergeable=True,
        differences=(
            "GEM takes the loss on the whole memory of every earlier task in every step, A-GEM that of a batch drawn from "
            "it. Here rows of memory are part of the global batches, `method.repeats` times an epoch, so an epoch has more "
            "steps; a batch without rows of a task is not constrained by it.",
            "The logged loss is the mean over all rows of a batch, in which those of memory count 0; the gradient is that "
            "of the mean over the task's own.",
            "AdamW does not move along the gradient: a step whose gradient obeys may still raise a loss on the memory. "
            "The gauge `gem_opposed` says which share of the earlier tasks that had rows in the last step the gradient "
            "opposed before it was turned.",
            "GEM's margin (a constant added to v, 0.5 in the release) is left out: it depends on the size of the gradients.",
            "Works at `train.zero_stage` 0, 1 and 2: at 3 all workers must take the same passes.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    @property
    def follows_gradients(self) -> bool:
        """Where there is a memory."""
        return self.info.stage > 1

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last branch, and open the memory."""
        super().install(backbone, state)
        self.memory = remembered(state, 0.0)
        self.flat = Flat(self.trainee.parameters())
        constraints = min(1, state.stage) if self.params.average else state.stage
        self.earlier = torch.zeros(constraints, self.flat.size, device=backbone.device)
        """g_k of the global batch so far, (t - 1, P), or (1, P) of all together."""
        self.tokens = torch.zeros(2, device=backbone.device)
        """Answer tokens of the global batch so far: all, and the task's own."""
        self.opposed: float | None = None

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The task's own examples, and the memory a few times; the loop shuffles them."""
        self.kept = keep(own, budget(own, self.params.share), self.info)
        return Joined(own_rows(own), *[self.memory] * self.params.repeats)

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """No term of the loss: the gradients on the rows of memory are taken here, where a pass can be run."""
        if not self.memory:
            return {}
        real, stages = (step.labels != IGNORE).sum(dim=1), step.inputs.stages
        own = (real if stages is None else real * (stages == 0)).sum()
        self.tokens += torch.stack([torch.full_like(own, step.tokens, dtype=torch.float32), own.float()])
        for constraint, rows in self._remembered(stages):
            logits = step.run(step.inputs.rows(rows))
            labels = step.labels[rows, -logits.shape[1] :]
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
            found = torch.autograd.grad(loss, list(self.flat.weights.values()), allow_unused=True)
            self.earlier[constraint] += self.flat.joined(found)
        return {}

    def gradients(self, gradients: Gradients) -> None:
        """g + sum_k v_k g_k, for the mean over the task's own tokens."""
        gradients.sum((self.earlier, self.tokens))
        counted, own = self.tokens
        vector = self.flat.gradient(gradients.get) * (counted / own.clamp(min=1))
        found = multipliers(vector, self.earlier)
        self.flat.write(gradients, vector + found @ self.earlier)
        present = self.earlier.any(dim=1)
        self.opposed = float(((self.earlier @ vector < 0) & present).sum() / present.sum().clamp(min=1))
        self.earlier.zero_()
        self.tokens.zero_()

    def measures(self) -> dict[str, float]:
        """Which share of the constraints in the last step the gradient broke."""
        return {} if self.opposed is None else {"gem_opposed": self.opposed}

    def facts(self) -> dict[str, Any]:
        """The examples that later stages are held to."""
        return {"memory": records(self.kept)}

    def _remembered(self, stages: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """Which constraints have rows in a batch, from 0, and the indices of these rows."""
        if stages is None:
            return
        if self.params.average:
            yield 0, stages.nonzero().flatten()
            return
        for stage in stages.unique().tolist():
            if stage > 0:
                yield stage - 1, (stages == stage).nonzero().flatten()
