"""MIGU (arXiv 2406.17245): only the units that answer loudly to the new task may be updated.

Every trained linear module z = W x, W (d_out, d_in), gets for each global batch

    n_j = sum over real tokens of |z_j|,    m_j = 1 if n_j >= quantile_tau(n) else 0,    dL/dW <- diag(m) dL/dW

so that a share tau of its rows receives no gradient in this step. Other tasks excite other units, so most rows that an
earlier task relies on stay out of the way. The paper's n is the mean and L1-normalised; a positive factor common to all
units changes no quantile mask. It starts with stage 2, needs no state, and stands on another method (`over`): SeqFT (every
linear module of the backbone), or SinLoRA, IncLoRA, O-LoRA, where for z = B A x the gradient of A (r, d_in) is masked by the
output A x (r values) and that of B (d_out, r) by the branch's output B A x (d_out values).

The mask acts on the gradient of the whole global batch, after it is averaged over the workers, before clipping and AdamW.
AdamW's momentum and weight decay still move a row in a step in which its gradient is masked, as in the released code.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.carriers import over_outputs
from raycl.adapters.magnitudes import Magnitudes, loudest
from raycl.files import Json
from raycl.methods.common.base import About, Gradients, Method, StageInfo
from raycl.methods.common.delegate import Wrapping
from raycl.methods.common.published import lora_settings
from raycl.methods.common.weights import LORA_FIELDS
from raycl.methods.inc_lora import IncLora
from raycl.methods.o_lora import OLora, OrthogonalParams
from raycl.methods.seq_ft import SeqFt
from raycl.methods.sin_lora import SinLora
from raycl.state.stage_state import StageState

INNER: dict[str, type[Method[Any]]] = {"seq_ft": SeqFt, "sin_lora": SinLora, "inc_lora": IncLora, "o_lora": OLora}
ORTHOGONAL = frozenset({"lambda1", "lambda2"})


class MiguParams(OrthogonalParams):
    """MIGU's hyper-parameters: those of the method it stands on, and the threshold."""

    name: Literal["migu"] = Field(
        default="migu", description="updates only units with large outputs, over another method"
    )
    over: Literal["seq_ft", "sin_lora", "inc_lora", "o_lora"] = Field(
        default="inc_lora",
        description="the method that is masked: all weights, or the LoRA branch of SinLoRA, IncLoRA, O-LoRA",
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="tau, the share of a module's units that gets no gradient; none = the paper's 0.7, over O-LoRA 0.05",
    )

    @property
    def tau(self) -> float:
        """The threshold in force."""
        if self.threshold is not None:
            return self.threshold
        return 0.05 if self.over == "o_lora" else 0.7

    def trains_matrices(self) -> bool:
        """Orthogonalised as a whole, an update would move the masked units too."""
        return False

    def in_force(self) -> Json:
        """The threshold, also where it is left to the paper."""
        return super().in_force() | {"threshold": self.tau}

    def inert(self, stage: int) -> frozenset[str]:
        """What the masked method does not read, and the threshold at stage 1, where nothing is masked."""
        unread = set() if self.over == "o_lora" else ORTHOGONAL
        unread = unread | (LORA_FIELDS if self.over == "seq_ft" else set())
        return super().inert(stage) | unread | ({"threshold"} if stage == 1 else set())


class Migu(Wrapping[MiguParams, Method[Any]]):
    """Another method with masked gradients."""

    Params = MiguParams
    about = About(
        title="gradients only for units with large outputs, over SeqFT, SinLoRA, IncLoRA or O-LoRA",
        paper="MIGU, arXiv 2406.17245",
        trains="what the method it stands on trains; of each linear module, the rows of its loudest units in every step",
        growth="that of the method it stands on",
        frozen="what the method it stands on freezes",
        penalised="over O-LoRA: overlap of the new branch's rows with all earlier ones",
        projected="from stage 2, gradient rows of units below the tau quantile of mean |output| are zeroed",
        state={
            "branch": "over a LoRA method: A (r, d_in) and B (d_out, r) of every adapted module",
            "weights": "over SeqFT: every weight of the backbone, fp32, in its own shape",
        },
        mergeable=True,
        differences=(
            "Padding and filler rows do not count; the released code sums over all positions.",
            "A unit at the quantile (within 1e-5 of it) is kept, the released code needs a larger sum: with B = 0 all "
            "outputs of the branch tie at 0, and a strict mask would let nothing train. It also makes "
            "`method.threshold=0` the bare method.",
            "Weights that are tied to the token embedding are not masked, nor are embeddings and norms.",
            "The mask acts before the norm of the gradient is clipped; the released full-weight trainer clips first.",
        ),
    )

    def __init__(self, params: MiguParams, info: StageInfo) -> None:
        super().__init__(params, info)
        self.magnitudes: Magnitudes | None = None
        self.kept: Tensor | None = None
        """How many of the masked modules' `rows` had a gradient in the last step; read only where it is logged, since the
        host waits for it."""
        self.rows = 0

    @classmethod
    def inner_class(cls, params: MiguParams) -> type[Method[Any]]:
        """The masked method."""
        return INNER[params.over]

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's grid for T5-Large: O-LoRA's conventions with dropout 0.05 and weight decay 0.01."""
        settings = lora_settings(family, order)
        settings["method"] |= {"dropout": 0.05}
        settings["train"] |= {"weight_decay": 0.01}
        return settings

    @property
    def masks(self) -> bool:
        """Whether this stage masks: the first task has no earlier ones to guard."""
        return self.info.stage > 1

    @property
    def follows_gradients(self) -> bool:
        """To mask them, or for the masked method's own use."""
        return self.masks or super().follows_gradients

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The masked method, and from stage 2 hooks on everything linear that it trains."""
        super().install(backbone, state)
        if self.masks:
            self.magnitudes = Magnitudes(backbone)

    def condition(self, inputs: Inputs) -> None:
        """Note the batch, so that padding is left out of the outputs' magnitudes."""
        super().condition(inputs)
        if self.magnitudes is not None:
            self.magnitudes.inputs = inputs

    def gradients(self, gradients: Gradients) -> None:
        """Zero the gradient rows of every module's quiet units, after the masked method has seen or changed them."""
        super().gradients(gradients)
        if self.magnitudes is None:
            return
        sums = self.magnitudes.take()
        gradients.sum(sums[path] for path in sorted(sums))
        kept: list[Tensor] = []
        self.rows = 0
        for path in sorted(sums):
            keep = loudest(sums[path], self.params.tau)
            kept.append(keep.sum())
            self.rows += len(keep)
            module = self.magnitudes.modules[path]
            for parameter in module.parameters(recurse=False):
                whole = gradients.get(parameter)
                if whole is not None:
                    gradients.set(parameter, whole * over_outputs(keep.to(whole.device, whole.dtype), whole, module))
        self.kept = torch.stack(kept).sum() if kept else None

    def remove(self) -> None:
        """Take the hooks and the masked method off."""
        if self.magnitudes is not None:
            self.magnitudes.release()
        super().remove()

    def measures(self) -> dict[str, float]:
        """The masked method's, and the share of rows with a gradient."""
        share = 1.0 if self.kept is None else int(self.kept) / self.rows
        return super().measures() | ({"migu_kept": share} if self.masks else {})
