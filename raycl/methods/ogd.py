"""OGD, orthogonal gradient descent (arXiv 1910.07104): steps leave what the model says of earlier examples as it is.

One LoRA branch trains on every task in turn; theta (P,) are its A and B of all modules as one vector. To first order a step
d changes log p(y|x) of an earlier example x by <grad_theta log p(y|x), d>. After stage t that gradient is taken, at the
weights that the stage ended with, of n of its training examples, and what they span beyond the earlier ones is kept:

    Q_t = orthonormal basis of span { grad log p(y_i|x_i), i = 1..n }  outside of Q = [Q_1 .. Q_(t-1)],    Q (P, <= n t)

and in every later step the gradient g of the global batch becomes g - Q Q^T g, after it is averaged over the workers, before
clipping and AdamW. log p(y|x) is the sum over the answer's tokens; there is no example of an earlier task in later stages.

The gradients are summed up as n random combinations of them at length 1, which span the same (`Sketch`): so that any
number of workers can take them, and no example that the model is unsure of drowns the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.gradient_space import Sketch, content, orthonormal
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, Carries, Gradients, Moments, Observes, When
from raycl.methods.common.flat import Flat
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.published import lora_settings
from raycl.methods.common.trained import OneLoraMethod
from raycl.state.stage_state import StagePart, StageState

BASIS = "basis/"
"""Prefix of a part's tensors: the rows of Q_t that belong to each trained weight, by its name."""
GRADIENTS = "gradients"
"""What the sketch is called among the moments."""


class OgdParams(LoraParams):
    """The branch's shape, and how many examples of each task are guarded."""

    name: Literal["ogd"] = Field(
        default="ogd", description="one LoRA, whose steps are orthogonal to gradients of earlier tasks' examples"
    )
    examples: PositiveInt = Field(
        default=20,
        description="n, examples of each task, drawn at random, whose gradients later steps are orthogonal to; each costs 4 "
        "bytes per trained number in every later stage (OGD: 200)",
    )

    def trains_matrices(self) -> bool:
        """Orthogonalised as a whole, an update would leave the complement again."""
        return False


class Ogd(OneLoraMethod[OgdParams]):
    """SinLoRA with projected gradients."""

    Params = OgdParams
    about = About(
        title="one LoRA trained in turn, its gradients orthogonal to those of earlier tasks' examples",
        paper="OGD, arXiv 1910.07104; row of TRACE (arXiv 2310.06762)",
        trains="A and B of one branch",
        growth="n r (d_in + d_out) per adapted module and task, all in memory in later stages; the served model does not "
        "grow",
        projected="from stage 2, the gradient of all trained weights as one vector, onto the complement of what is kept",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "basis": "the rows of Q_t, at most n columns, that belong to each A and B: (r d_in, n) and (d_out r, n)",
        },
        mergeable=True,
        differences=(
            "OGD keeps the gradients of the model's outputs, one per class, or that of the right class's logit; here that "
            "of log p(y|x) of the whole answer, as a text has too many outputs. Where p is close to 1 it is that of the few "
            "tokens that are not sure.",
            "OGD takes plain gradient steps. AdamW scales every weight's step by itself and adds decay, so that a step "
            "leaves the complement: the gauge `ogd_leak` says which share of what the stage has moved lies in the guarded "
            "directions (0 = none), `ogd_removed` which share of the last gradient was taken off. In three tasks of ten "
            "steps on the packaged model 0.06 and 0.07 of the movement leaked; 0.2 to 0.5 of a gradient was taken off.",
            "Directions are those at the end of their own stage; they are not taken anew when the weights have moved on.",
            "n is 20 and not 200: at rank 8 on T5-Large's q and v (2.4 M numbers) a task costs 189 MB, on Llama-2-7B's "
            "(4.2 M) 336 MB, in the store and, of all earlier tasks together, on every worker. `method.examples`.",
            "Directions in which the unit gradients vary by less than 0.001 of the largest are left out.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    @classmethod
    def carries(cls, params: OgdParams) -> Carries:
        """Every part holds directions of its own."""
        return "all"

    @classmethod
    def passes(cls, params: OgdParams) -> Mapping[When, Observes]:
        """One after training, for the gradients."""
        return {"after": "gradients"}

    @property
    def observes(self) -> Observes:
        """Gradients, example by example."""
        return "gradients"

    @property
    def pass_examples(self) -> int:
        """As many as the hyper-parameters say."""
        return self.params.examples

    @property
    def follows_gradients(self) -> bool:
        """To project them; the first task has no earlier ones to guard."""
        return self.info.stage > 1

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last branch, and put all directions on the device."""
        super().install(backbone, state)
        self.flat = Flat(self.trainee.parameters())
        kept = [self.flat.whole(_pieces(part)) for part in state.parts]
        self.basis = torch.cat([torch.zeros(self.flat.size, 0), *kept], dim=1).to(backbone.device)
        self.start = self.flat.values()
        self.removed: Tensor | None = None
        """Which share of the last gradient's length lay in the guarded directions."""

    def gradients(self, gradients: Gradients) -> None:
        """g - Q Q^T g."""
        vector = self.flat.gradient(gradients.get)
        self.flat.write(gradients, vector - self.basis @ (self.basis.T @ vector))
        self.removed = self._inside(vector)

    def collect(self, when: When) -> Moments | None:
        """The gradients after training."""
        if when == "before":
            return None
        self.sketch = Sketch(self.flat.size, self.params.examples, self.basis.device)
        return {GRADIENTS: self.sketch}

    def condition(self, inputs: Inputs) -> None:
        """Note whose gradient comes next in a pass that observes them."""
        self.inputs = inputs

    def observe_gradients(self) -> None:
        """Add one example's gradient; which combinations it enters depends on its tokens alone."""
        gradient = self.flat.gradient(lambda weight: weight.grad)
        self.sketch.add(gradient, self.info.generator(f"sketch {content(self.inputs)}"))

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, and the directions that its task adds."""
        part = super().consolidate(moments)
        new = orthonormal(moments[GRADIENTS].total, self.basis)
        basis = {f"{BASIS}{name}": rows.cpu().contiguous() for name, rows in self.flat.pieces(new).items()}
        return StagePart(part.task, part.branch, part.tensors | basis, part.facts)

    def measures(self) -> dict[str, float]:
        """From stage 2: dimensions guarded, and how much of gradient and movement they hold."""
        if self.removed is None:
            return {}
        leak = self._inside(self.flat.values() - self.start)
        return {"ogd_dims": self.basis.shape[1], "ogd_removed": float(self.removed), "ogd_leak": float(leak)}

    def _inside(self, vector: Tensor) -> Tensor:
        """Which share of a vector's length lies in the guarded directions, 0 to 1; 0 of a vector of zeros."""
        return (self.basis.T @ vector).norm() / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)


def _pieces(part: StagePart) -> dict[str, Tensor]:
    """The rows of a part's directions, by the weights' names."""
    return {name.removeprefix(BASIS): value for name, value in part.tensors.items() if name.startswith(BASIS)}
