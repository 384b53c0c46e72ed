"""Watch how strongly the units of trained linear modules answer, over the training forward passes of a global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import IGNORE, Backbone, Inputs
from raycl.adapters.carriers import carries_branch

TIE = 1e-5
"""Sums that differ by less than this, relative to the quantile, count as equal."""


class Magnitudes:
    """n_j = sum over real tokens of |output_j| of every linear module whose weight trains.

    Those are the factors A and B of a LoRA branch, or the backbone's own modules where all weights train. A
    weight that is also the token embedding is left out: its rows are tokens, not units. Forward passes in eval mode
    (data passes, held-out loss) are not counted, nor are padding and the filler rows of a last, smaller batch.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.inputs: Inputs | None = None
        """The batch at hand; the method sets it before each forward pass."""
        embedding = backbone.model.get_input_embeddings().weight
        self.modules: dict[str, nn.Module] = {
            path: module
            for path, module in backbone.model.named_modules()
            if carries_branch(module)
            and (weight := module.get_parameter("weight")).requires_grad
            and weight is not embedding
        }
        self._sums: dict[str, Tensor] = {}
        self._hooks = [module.register_forward_hook(self._hook(path)) for path, module in self.modules.items()]

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, by path of the module, each (d_out,) fp32."""
        sums, self._sums = self._sums, {}
        return sums

    def release(self) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, path: str) -> Any:
        def observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training:
                return
            with torch.no_grad():
                size = output.detach()[self._real(path, output)].abs().sum(dim=0, dtype=torch.float32)
                self._sums[path] = self._sums[path] + size if path in self._sums else size

        return observe

    def _real(self, path: str, output: Tensor) -> Tensor:
        """(B, positions): which positions of the module's output count."""
        if self.inputs is None or self.inputs.labels is None:
            raise RuntimeError(
                "magnitudes are taken in training: the method must be conditioned on a batch with answers"
            )
        region = self.backbone.region(path.partition(".lora_")[0])
        answered = (self.inputs.labels != IGNORE).any(dim=1)
        return self.inputs.fitted(self.inputs.region_mask(region) & answered[:, None], output)


def loudest(sums: Tensor, share: float) -> Tensor:
    """(d_out,) bool: the units at or above the `share` quantile of `sums` (d_out,); equal sums are kept together.

    Equal up to rounding: after Adam's first step all entries of B are +-lr, so that rows of one sign pattern tie, and how a
    batch is cut must not decide between them.
    """
    return sums >= torch.quantile(sums, share) * (1 - TIE)
