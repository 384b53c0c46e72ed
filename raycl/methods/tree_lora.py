"""TreeLoRA (arXiv 2506.10355): one LoRA, pulled in every layer towards the earlier task that resembles the current one.

One branch per adapted module l (A (r, d_in), B (d_out, r)) is trained on every task in turn, as in SinLoRA. For each layer a
part keeps m_(i,l) (r, d_in), the mean of A over the stage's steps, and v_(i,l), which describes task i there: m_(i,l) itself
(`vector: weights`, as in the released code), or the mean gradient of A (`gradient`, as the paper says).

At each step k = 0..N-1 of stage t > 1, with g_l the mean of the current task's vectors so far, every layer chooses i_l:

    LCB_(i,l) = mean distance of g_l and v_(i,l) where i was chosen - sqrt(log(2 N (k+1)(k+2)) / (2 n_(i,l)))
    first     = argmin_i sum_l LCB_(i,l);   G = the node of a KD-tree over the earlier tasks that holds it
    i_l       = argmin_(i in G) LCB_(i,l)

n counts choices; distances are L1, divided by the sum of both norms. In the tree a node at depth d is split at layer d, at
the median inner product with the node's mean vector; of weights the tree sees the change v_i - v_(i-1). The loss is

    CE - reg,   reg = w |CE| p S / |S|,   S = sum_l <A_l, m_(i_l,l)>,   p = share of the stage's steps done,   w = 0.5,

where CE and |S| are constants to the gradient: A is drawn along the chosen tasks' mean A. Serving uses the last branch.

The paper's own text was not available: this follows the released code (ZinYY/TreeLoRA), and mends what contradicts the
comments in it. `About.differences` lists every departure.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.adapters.task_tree import Bandit, choose, distance, groups
from raycl.fields import Weight
from raycl.files import Json
from raycl.methods.common.base import About, Carries, Gradients, Moments, Penalty, Step
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.published import is_t5, lora_settings
from raycl.methods.common.trained import OneLoraMethod
from raycl.state.stage_state import StagePart, StageState

MEAN_A = "mean_a/"
"""Prefix of a part's tensors: the mean of A over the stage, by module."""
MEAN_GRADIENT = "gradient/"
"""Prefix of a part's tensors: the mean gradient of A over the stage, by module; only with `vector=gradient`."""


class TreeLoraParams(LoraParams):
    """TreeLoRA's hyper-parameters."""

    name: Literal["tree_lora"] = Field(
        default="tree_lora", description="one LoRA, pulled towards similar earlier tasks per layer"
    )
    weight: Weight = Field(default=0.5, description="w of reg = w |CE| progress S / |S| (the release's `reg`)")
    vector: Literal["weights", "gradient"] = Field(
        default="weights",
        description="what describes a task: the mean of A (released code), or of A's gradient (the paper)",
    )
    tree_levels: int = Field(
        default=1, ge=0, description="depth of the tree's node to which all layers' choices are confined; 0 = no tree"
    )
    choice: Literal["least", "draw"] = Field(
        default="least", description="the least lower bound, or a draw from softmax(-bound), as the release draws"
    )
    distance: Literal["relative", "absolute"] = Field(
        default="relative",
        description="L1 distance over the sum of both norms (in [0, 1], as the bound assumes), or as it is",
    )

    def inert(self, stage: int) -> frozenset[str]:
        """Nothing resembles the first task, and there is nothing to choose among before the third."""
        unread = {"tree_levels", "choice", "distance"} if stage <= 2 else set()
        return super().inert(stage) | unread | ({"weight"} if stage == 1 else set())


class TreeLora(OneLoraMethod[TreeLoraParams]):
    """SinLoRA with a bandit that chooses, layer by layer, the earlier task to be pulled to."""

    Params = TreeLoraParams
    about = About(
        title="one LoRA, pulled in every layer towards the most similar earlier task",
        paper="TreeLoRA, arXiv 2506.10355",
        trains="A and B of one branch",
        growth="r (2 d_in + d_out) per adapted module and task, r d_in more with `vector=gradient`; the served model does "
        "not grow",
        penalised="a small inner product of A with the chosen earlier tasks' mean A",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "mean_a": "(r, d_in): mean of A over the stage's steps",
            "gradient": "with vector=gradient, (r, d_in): mean gradient of A over the stage's steps",
        },
        mergeable=True,
        differences=(
            "The release calls the values of A its gradients. With `method.vector=gradient` gradients tell which task is "
            "similar, but the pull still acts on A: a product with gradients would need second derivatives.",
            "The gradients of `vector=gradient` are those of the whole loss, the pull included.",
            "The release's search prefers distant tasks (a sign lost on the way); here the least bound is chosen. It draws "
            "from a softmax: `method.choice=draw`. It does not scale distances: `method.distance=absolute`.",
            "The release multiplies the scores of the tree's half that holds the first draw by its median similarity, at "
            "most 1.5; here choices are confined to it. Its deeper levels go unused: `method.tree_levels`.",
            "Means, bandit and ramp p run over the stage, and a choice holds for an optimizer step; in the release they "
            "start anew in each epoch, a choice holds for a micro-batch, means are divided by all steps of the epoch from "
            "its first step on, and multiplied by the number of layers.",
            "reg is divided by |S|; the release divides by S itself and so pushes a negative S further down.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released TRACE scripts (r 8, alpha 32, dropout 0.1, cosine from 1e-4); SinLoRA's epochs, and its lr on T5."""
        settings = lora_settings(family, order)
        settings["method"] |= {"rank": 8}
        if not is_t5(family):
            settings["train"] |= {"schedule": "cosine", "batch_size": 32}
        return settings

    @property
    def follows_gradients(self) -> bool:
        """Only where gradients describe a task."""
        return self.params.vector == "gradient"

    @classmethod
    def carries(cls, params: TreeLoraParams) -> Carries:
        """The current task is compared with every earlier one."""
        return "all"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Train the last branch on; build the tree of the earlier tasks, and a bandit over them."""
        super().install(backbone, state)
        self.layers = self.trainee.branches.layers
        kinds = [MEAN_A, MEAN_GRADIENT] if self.follows_gradients else [MEAN_A]
        self.sums = {
            kind + path: torch.zeros_like(layer.down.data) for kind in kinds for path, layer in self.layers.items()
        }
        self.done = torch.zeros(())
        self.earlier = [{name: part.tensors[name].to(backbone.device) for name in self.sums} for part in state.parts]
        self.kind = kinds[-1]
        vectors = [[part[self.kind + path] for path in self.layers] for part in self.earlier]
        self.nodes = groups(tree_vectors(vectors, changes=self.params.vector == "weights"), self.params.tree_levels)
        self.bandit = Bandit(len(self.earlier), len(self.layers))
        self.choice: Tensor | None = None
        self.at: float | None = None
        """Progress of the step at hand: all its micro-batches share one choice."""

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """-S / |S| |CE| p, with its weight."""
        if step.progress != self.at:
            self.at = step.progress
            self._begin(step.progress)
        if self.choice is None:
            return {}
        chosen = zip(self.choice.tolist(), self.layers.items(), strict=True)
        products = [(layer.down * self.earlier[task][MEAN_A + path]).sum() for task, (path, layer) in chosen]
        similarity = torch.stack(products).sum()
        size = similarity.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)
        return {"similarity": Penalty(-similarity / size * step.loss.detach() * step.progress, self.params.weight)}

    def gradients(self, gradients: Gradients) -> None:
        """Add up the gradients of A, and compare with the chosen tasks'."""
        for path, layer in self.layers.items():
            gradient = gradients.get(layer.down)
            if gradient is not None:
                self.sums[MEAN_GRADIENT + path] += gradient.to(self.sums[MEAN_GRADIENT + path])
        self._compare()

    def running(self) -> dict[str, Tensor]:
        """The sums behind the means, and what the bandit has seen."""
        seen = {"steps": self.done, "counts": self.bandit.counts, "distances": self.bandit.totals}
        return self.sums | (seen if self.earlier else {"steps": self.done})

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, and the means of the stage."""
        part = super().consolidate(moments)
        means = {name: (total / self.done.clamp(min=1)).cpu() for name, total in self.sums.items()}
        return StagePart(part.task, part.branch, part.tensors | means, part.facts)

    def measures(self) -> dict[str, float]:
        """How the choices so far were shared out over the earlier tasks."""
        shares = self.bandit.counts.sum(dim=1) / self.bandit.counts.sum().clamp(min=1)
        return {f"chosen/{task}": share for task, share in enumerate(shares.tolist(), start=1)}

    def _begin(self, progress: float) -> None:
        """At the start of an optimizer step: take A up into its mean, and choose."""
        step = int(self.done)
        for path, layer in self.layers.items():
            self.sums[MEAN_A + path] += layer.down.detach()
        self.done += 1
        if not self.earlier:
            return
        # The stage's length follows from the share that is done; at step 0, where no arm was seen, it does not matter.
        steps = max(1, round(step / progress)) if progress else 1
        bounds = self.bandit.bounds(step, steps)
        draws = self.params.choice == "draw"
        self.choice = choose(bounds, self.nodes, self.info.generator(f"choice {step}") if draws else None)
        if not self.follows_gradients:
            self._compare()

    def _compare(self) -> None:
        """Let the bandit see how far the chosen tasks' vectors are from the current one's."""
        if self.choice is None:
            return
        relative, steps = self.params.distance == "relative", float(self.done)
        names = [self.kind + path for path in self.layers]
        chosen: Any = zip(self.choice.tolist(), names, strict=True)
        apart = [distance(self.sums[name] / steps, self.earlier[task][name], relative) for task, name in chosen]
        self.bandit.observe(self.choice, torch.stack(apart))


def tree_vectors(vectors: list[list[Tensor]], changes: bool) -> list[list[Tensor]]:
    """What the tree sees of the earlier tasks' vectors, `vectors[task][layer]`: as they are, or what each task changed.

    Weights are taken over from one task to the next, so that of them only the change tells the tasks apart.
    """
    if not changes:
        return vectors
    changed = [[v - before for v, before in zip(new, old, strict=True)] for old, new in pairwise(vectors)]
    return [*vectors[:1], *changed]
