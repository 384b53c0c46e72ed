"""AM-LoRA (arXiv 2409.19611): a branch per task, and in every layer a softmax attention that weighs the branches.

At stage t, for each token x (d_in) of an adapted layer with weight W (d_out, d_in):

    u_i = s B_i A_i x,  i = 1..t;   u_0 = 0        branch outputs in R^d_out, s = alpha / r
    z_i = w_i . u_i                                scores; z_0 = 0 whatever w_0 is, or a number that trains (`zero_logit`)
    g   = softmax(z_0, ..., z_t)
    y   = W x + sum_{i<=t} g_i u_i

    loss = CE + lambda_t sum_layers sum_{i=0..t} ||w_i||_1

A_i (r, d_in) and B_i (d_out, r) with i < t are frozen; A_t and B_t train. The selectors w_i (d_out) of old tasks stay
(`variant=nr`, no retraining) or train again at every stage (`variant=ar`, all retrained). w_t starts at 0, so all g_i
start equal; it is not at a saddle for long: w_t has no gradient while B_t = 0, but B_t has one at once.

Adding a branch rescales the old ones: with D = sum_{i<t} e^{z_i}, every old g_i is multiplied by D / (D + 1) when task t
begins, although B_t = 0. The model therefore does not start a stage as it ended the last. That is how the method is.

The zero branch is there so that the model may choose not to use what the branches know, but w_0 . u_0 = 0 lets it choose
nothing. With `zero_logit=trained` every layer has a z_0 of its own, 0 at first, that goes on training at every stage, under
`nr` too: the zero branch belongs to no task, and a choice frozen after the first one would be no choice for the others.
No code was released; this follows the paper's text and its figure 4.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.branches import kaiming
from raycl.adapters.selectors import Selectors, attention
from raycl.fields import InKeyUnlessDefault, Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, InPeft, Moments, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import is_t5, t5_dropout
from raycl.state.stage_state import StagePart, StageState

SELECTOR = "selector/"
ZERO_LOGIT = "zero_logit/"
L1_STANDARD = 1e-5
L1_LONG = {
    "long-4": [0.0] + [0.01] * 5 + [0.3] + [0.001] * 8,
    "long-5": [1e-4] * 2 + [0.001] * 8 + [0.01] * 5,
    "long-6": [0.001] * 15,
}
"""lambda per task position, as the paper lists it; orders 1 to 3 use 1e-5 throughout."""


class AmLoraParams(LoraParams):
    """AM-LoRA's hyper-parameters."""

    name: Literal["am_lora"] = Field(
        default="am_lora", description="a softmax attention over the branches in every layer"
    )
    variant: Literal["nr", "ar"] = Field(
        default="ar", description="ar: selectors of all tasks train; nr: only the new task's"
    )
    l1: Weight | list[Weight] = Field(
        default=L1_STANDARD, description="lambda, weight of sum ||w_i||_1 over layers and tasks; 0 = without; per stage"
    )
    selector_init: Literal["zeros", "random"] = Field(
        default="zeros", description="w_t at its start: 0, or uniform in +-1/sqrt(d_out) (the paper does not say)"
    )
    zero_logit: Annotated[Literal["fixed", "trained"], InKeyUnlessDefault()] = Field(
        default="fixed",
        description="z_0 of the zero branch: always 0 (the paper's equations), or one number per adapted module that "
        "trains, so that the model can choose not to use old knowledge (the paper's text)",
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """lambda may change from stage to stage."""
        return super().per_stage_fields() | {"l1"}

    def inert(self, stage: int) -> frozenset[str]:
        """At stage 1 there is one selector, so the variants are the same."""
        return super().inert(stage) | ({"variant"} if stage == 1 else set())


class AmLora(LoraMethod[AmLoraParams]):
    """IncLoRA whose branches are weighed by an attention."""

    Params = AmLoraParams
    about = About(
        title="a branch per task, weighed token by token by a softmax attention in every layer",
        paper="AM-LoRA, arXiv 2409.19611",
        trains="A and B of a new branch; the selectors of all tasks (`variant=ar`) or of the new one (`nr`); with "
        "`zero_logit=trained` also z_0 of every module",
        growth="r (d_in + d_out) per adapted module and task, and (t + 1) d_out selector values at stage t",
        frozen="the backbone and all earlier branches; with `variant=nr` also the earlier selectors",
        penalised="the L1 norm of all selectors, which drives the attention's inputs to few output features",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "selector": "(t + 1, d_out) of every adapted module: w_0..w_t as they stood after the stage; w_0 = 0",
            "zero_logit": "with `zero_logit=trained`, (1,) of every adapted module: z_0 as it stood after the stage",
        },
        differences=(
            "The paper does not say how w_t starts; zeros here, `method.selector_init=random` draws it.",
            "w_0 meets a branch that is always zero, so it acts on nothing; it stays at 0 and does not train. The text "
            "wants the model to be able not to use old knowledge: `method.zero_logit=trained` gives the zero branch a score "
            "that trains; the L1 term leaves it out.",
            "The text says that key and value are adapted, its figure 4 and its parameter count say query and value; "
            "query and value here, `method.targets` chooses.",
            "The L1 sum has no stated normalisation; it is the plain sum over layers, tasks and entries.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's: 8 GPUs with 8 (T5-Large) or 1 (Llama-2-7B) examples each, one epoch at a constant rate."""
        t5 = is_t5(family)
        return {
            "model": {"dropout": t5_dropout(family)},
            "method": {"rank": 8, "alpha": 32.0, "dropout": 0.1, "l1": L1_LONG.get(order, L1_STANDARD)},
            "train": {"lr": 1e-4, "epochs": 1, "batch_size": 64 if t5 else 8, "weight_decay": 0.0},
        }

    @classmethod
    def in_peft(cls, params: AmLoraParams) -> InPeft:
        """Branches are weighed token by token."""
        return "none"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Frozen branches, a new branch, the last selectors and a new row of them."""
        super().install(backbone, state)
        generator = self.info.generator("selector")
        rows = {}
        for path, layer in self._layers:
            new = self._new_row(layer.up, generator)
            rows[path] = torch.cat([_rows(state, path), new]) if state.last else new
        free = self.info.stage if self.params.variant == "ar" else 1
        self._attend_by(Selectors(rows, free, self._zero_logits(state)))

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches under the last stage's selectors."""
        super().serve(backbone, state)
        rows = {path: _rows(state, path) for path, _ in self._layers}
        self._attend_by(Selectors(rows, 0, self._zero_logits(state)))

    def condition(self, inputs: Inputs) -> None:
        """Cut the selectors into layers once per forward pass."""
        self._cut()

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The L1 norm, where its weight is not 0. Frozen selectors are part of it, as a constant."""
        weight = at_stage(self.params.l1, self.info.stage)
        return {"selectors": Penalty(self.selectors.rows().abs().sum(), weight)} if weight > 0 else {}

    def consolidate(self, moments: Moments) -> StagePart:
        """The trained branch, and all selectors as they are now."""
        rows = {path: values.detach().cpu() for path, values in self.selectors.by_layer().items()}
        tensors = {f"{SELECTOR}{path}": torch.cat([torch.zeros_like(w[:1]), w]) for path, w in rows.items()}
        zero = self.selectors.zero_by_layer()
        tensors |= {f"{ZERO_LOGIT}{path}": value.detach().cpu().clone() for path, value in zero.items()}
        return StagePart(self.info.task, self.branch(), tensors, self.facts())

    def modules(self) -> dict[str, nn.Module]:
        """The selectors."""
        return {"selectors": self.selectors}

    def measures(self) -> dict[str, float]:
        """The L2 norm of each task's selectors over all layers: 0 = all branches count alike. Mean z_0, where it trains."""
        norms = self.selectors.rows().detach().norm(dim=1).tolist()
        measures = {f"selector_norm/{index}": norm for index, norm in enumerate(norms, start=1)}
        return measures if self.selectors.zero is None else measures | {"zero_logit": self.selectors.zero.mean().item()}

    @property
    def _layers(self) -> list[tuple[str, Any]]:
        """Path and layer of every adapted module."""
        return list(self.branches.layers.items())

    def _attend_by(self, selectors: Selectors) -> None:
        """Let the selectors weigh the branches in every layer."""
        self.selectors = selectors.to(self.branches.backbone.device)
        self._cut()
        for path, layer in self._layers:
            layer.mixer = partial(self._attention, path)

    def _cut(self) -> None:
        """The selectors, layer by layer."""
        self.rows, self.zeros = self.selectors.by_layer(), self.selectors.zero_by_layer()

    def _attention(self, path: str, layer: Any, old: Tensor | None, new: Tensor) -> Tensor:
        """g_1..g_t of the layer at `path`."""
        return attention(layer, self.rows[path], old, new, self.zeros.get(path))

    def _zero_logits(self, state: StageState) -> dict[str, Tensor] | None:
        """z_0 of every module, (1,): as the last stage left it, 0 at first; none where it does not train."""
        if self.params.zero_logit == "fixed":
            return None
        last = state.last
        return {path: last.tensors[f"{ZERO_LOGIT}{path}"] if last else torch.zeros(1) for path, _ in self._layers}

    def _new_row(self, up: Tensor, generator: torch.Generator) -> Tensor:
        """w_t (1, d_out) at its start."""
        shape = (1, up.shape[0])
        return kaiming(shape, generator) if self.params.selector_init == "random" else torch.zeros(shape)


def _rows(state: StageState, path: str) -> Tensor:
    """The last stage's w_1, w_2, ... of a module, (tasks so far, d_out), without w_0."""
    return state.newest.tensors[f"{SELECTOR}{path}"][1:]
