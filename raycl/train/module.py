"""Backbone and method as one module with one forward pass: what the engine owns and what data passes run."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.backbone import Backbone, Inputs
from raycl.methods.base import Method

IGNORE = -100


class StageModule(nn.Module):
    """Conditions the method, runs the backbone, and sums the cross-entropy over answer tokens."""

    def __init__(self, backbone: Backbone, method: Method) -> None:
        super().__init__()
        self.model = backbone.model
        self.extra = nn.ModuleDict(method.modules())
        self.backbone, self.method = backbone, method
        self._short_logits = "logits_to_keep" in inspect.signature(backbone.model.forward).parameters

    def forward(self, inputs: Inputs) -> Tensor:
        """Sum over answer tokens of -log p (a scalar, fp32)."""
        self.method.condition(inputs)
        logits, labels = self._logits(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")

    def _logits(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and the labels they predict, both (B, L, ...)."""
        if self.backbone.encoder_decoder:
            out = self.model(input_ids=inputs.ids, attention_mask=inputs.mask, labels=inputs.labels, use_cache=False)
            return out.logits, inputs.labels
        answer = max(1, int((inputs.labels != IGNORE).any(dim=0).sum()))
        keep = {"logits_to_keep": answer + 1} if self._short_logits else {}
        positions = (inputs.mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.model(
            input_ids=inputs.ids, attention_mask=inputs.mask, position_ids=positions, use_cache=False, **keep
        )
        return out.logits[:, -answer - 1 : -1], inputs.labels[:, -answer:]


def precision(backbone: Backbone) -> AbstractContextManager[object]:
    """The autocast context of everything outside the engine: the same arithmetic as inside it."""
    dtype = backbone.model.get_input_embeddings().weight.dtype
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(backbone.device.type, dtype=dtype)
