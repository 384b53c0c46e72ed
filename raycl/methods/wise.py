"""WiSE: after every stage the weights are averaged with those before it.

Stage t trains a new branch on W_{t-1}, to W'_t = W_{t-1} + s B_t A_t with s = alpha / r, and hands on

    W_t = (1 - w_t) W_{t-1} + w_t W'_t = W_{t-1} + w_t s B_t A_t,

that is, the trained branch with w_t B_t in the place of B_t, which later stages train on and scores are of. All else is
IncLoRA, which is w_t = 1. Of the weights of an earlier stage nothing is lost: W_t = W_0 + sum_{i<=t} w_i s B_i A_i.

    constant    w_t = w: every stage keeps the share w of what it learned, the first one too (WiSE-FT averages with the
                pretrained weights, W_0), and moves the earlier tasks' function as much less
    mean        w_t = 1 / t: W_t is the mean of W'_1 .. W'_t; the first stage is left whole, later ones count less and less

Weights are averaged, not factors: the branches' products lie in the same space whatever their A and B.
Source: WiSE-FT (arXiv 2109.01903), in sequence as PAINT's sequential patching (arXiv 2208.05592).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from raycl.fields import at_stage
from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import lora_settings
from raycl.state.stage_state import Branch

Share = Annotated[float, Field(gt=0, le=1)]


class WiseParams(LoraParams):
    """The branch's shape, and how much of a stage is kept."""

    name: Literal["wise"] = Field(
        default="wise", description="a new branch per task, averaged with the weights before it"
    )
    share: Share | list[Share] = Field(
        default=0.5, description="w, share of a stage's update that is kept (1 = IncLoRA); per stage"
    )
    schedule: Literal["constant", "mean"] = Field(
        default="constant", description="w at every stage, or 1 / t: the mean of all stages' trained weights"
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """The share may change from stage to stage."""
        return super().per_stage_fields() | {"share"}

    def inert(self, stage: int) -> frozenset[str]:
        """The mean has shares of its own."""
        return super().inert(stage) | ({"share"} if self.schedule == "mean" else set())

    def kept(self, stage: int) -> float:
        """w_t of a stage (1-based), in (0, 1]."""
        return 1 / stage if self.schedule == "mean" else at_stage(self.share, stage)


class Wise(LoraMethod[WiseParams]):
    """IncLoRA whose branches are scaled when their stage is over."""

    Params = WiseParams
    about = About(
        title="a new LoRA branch per task, averaged with the weights before it",
        paper="WiSE-FT, arXiv 2109.01903; in sequence as in PAINT, arXiv 2208.05592",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        state={"branch": "A (r, d_in), and B (d_out, r) times w_t, of every adapted module"},
        mergeable=True,
        differences=(
            "WiSE-FT and PAINT average all weights of image models; here those that a LoRA branch changes.",
            "PAINT chooses w on validation rows after every stage; here it is set. Stages with different w differ in their "
            "keys, and all that follow them.",
            "With `method.schedule=constant` the first stage is averaged with the pretrained weights too, as in WiSE-FT: at "
            "w = 0.5 the model is half-way to what it learned on the first task. `method.share=[1, 0.5, ...]` and "
            "`method.schedule=mean` leave it whole.",
            "Serving InfLoRA's or IncLoRA's branches with weights (`method.mix`) is another model: there later stages train "
            "on the branches as they were. So is `merging` with `rule=mean`: its stages train on unmerged weights.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    def branch(self) -> Branch:
        """The trained branch with w_t B in the place of B."""
        trained, share = super().branch(), self.params.kept(self.info.stage)
        return replace(trained, b={path: share * b for path, b in trained.b.items()})
