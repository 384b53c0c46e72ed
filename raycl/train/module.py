"""Backbone and method as one module with one forward pass: what the engine owns and what data passes run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.backbone import IGNORE, Backbone, Inputs
from raycl.adapters.branches import bare
from raycl.adapters.predicting import precision, predicted
from raycl.adapters.soft_prompts import soften
from raycl.methods.common.base import Method
from raycl.methods.common.teacher import as_teacher

Gate = Callable[[Tensor], Tensor]
"""Weight of each answer token in the cross-entropy from the logits that predict it: (B, L, V) -> (B, L), no gradient."""


class StageModule(nn.Module):
    """Conditions the method, runs the backbone, and sums the cross-entropy over answer tokens."""

    def __init__(self, backbone: Backbone, method: Method) -> None:
        super().__init__()
        self.model = backbone.model
        self.extra = nn.ModuleDict(method.modules())
        self.backbone, self.method = backbone, method

    def forward(self, inputs: Inputs, gate: Gate | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Sum over answer tokens of -w log p (a scalar, fp32), the logits (B, L, V) and the labels (B, L) they predict.

        w is the row's weight times the token's from `gate`, each 1 where there is none.
        """
        logits, labels = self.predict(inputs)
        return summed_loss(inputs, logits, labels, gate), logits, labels

    def predict(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and the labels they predict, both (B, L, ...). Raises ValueError for a batch without labels."""
        self.method.condition(inputs)
        return self.read(inputs, self.method)

    def base(self, inputs: Inputs) -> Tensor:
        """What the base model alone says in the place of `predict`'s logits, without dropout and without gradients.

        No hook of the method is called: it is left as it was conditioned. Raises ValueError where the base model's own
        weights train, and for a batch without labels.
        """
        with as_teacher(self.model), bare(self.backbone), precision(self.backbone):
            return self.read(inputs, None)[0]

    def read(self, inputs: Inputs, method: Method | None) -> tuple[Tensor, Tensor]:
        """As `predict`, with the method as it is conditioned; without one no soft prompt is put in."""
        fed, mask, labels = feed(self.backbone, method, inputs)
        if labels is None:
            raise ValueError("a training batch needs labels")
        return predicted(self.backbone, fed, mask, labels)


def summed_loss(inputs: Inputs, logits: Tensor, labels: Tensor, gate: Gate | None) -> Tensor:
    """Sum over answer tokens of -w log p, as `StageModule` says; the logits (B, L, V) predict the labels (B, L)."""
    flat = logits.float().flatten(0, 1), labels.flatten()
    if inputs.weights is None and gate is None:
        return F.cross_entropy(*flat, ignore_index=IGNORE, reduction="sum")
    each = F.cross_entropy(*flat, ignore_index=IGNORE, reduction="none").view_as(labels)
    each = each if gate is None else each * gate(logits)
    return (each if inputs.weights is None else each * inputs.weights[:, None]).sum()


def feed(backbone: Backbone, method: Method | None, inputs: Inputs) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    """What the backbone is given for a batch the method was conditioned on, its mask, and its labels.

    Token ids, or, where the method has a soft prompt, embeddings with the prompt in place.
    """
    soft = None if method is None else method.soft_prompt()
    if soft is None:
        return {"input_ids": inputs.ids, "attention_mask": inputs.mask}, inputs.mask, inputs.labels
    softened = soften(backbone, inputs, soft)
    return (
        {"inputs_embeds": softened.embeds, "attention_mask": softened.mask},
        softened.mask,
        softened.labels,
    )
