"""ELLA (arXiv 2601.02232): a new update may not be large where the sum of the earlier ones already is, entry by entry.

At stage t, in an adapted module with weight W (d_out, d_in), A_i (r, d_in), B_i (d_out, r) and s = alpha / r:

    y = W x + sum_{i<=t} s B_i A_i x,    E = sum_{i<t} s B_i A_i
    loss = CE + (lambda / L) sum_modules || s B_t A_t * E ||_F^2

with * entrywise and L the number of adapted modules. The penalty shrinks: for the task loss ||D - G||^2 / 2 the best update
is G / (1 + 2 lambda E^2 / L), entry by entry, so that what earlier tasks did not move is free. `energy=squares` puts the sum
of the squares (s B_i A_i)^2 in the place of E^2: there two updates that cancel still protect what both depend on.

The exact term needs products of full size, (d_out, d_in), made module by module and again in the backward pass. The factored
one takes E^2 as u v^T, u (d_out,) its row sums and v (d_in,) its column sums over their total:

    || s B A * E ||_F^2  ~  s^2 tr[(B^T diag(u) B) (A diag(v) A^T)]

which is exact where E^2 has rank one, and costs as much as the branch. The text was not at hand: equations and defaults are
those of a re-implementation by other authors (JumpLoRA's release) and of third accounts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.fields import Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.products import per_module
from raycl.methods.common.published import lora_settings
from raycl.state.stage_state import StageState

if TYPE_CHECKING:
    from raycl.adapters.stacked_lora import StackedLora

EXACT_UP_TO = 10**8
"""Numbers of all E together above which `penalty=auto` is the factored term."""


class EllaParams(LoraParams):
    """ELLA's hyper-parameters."""

    name: Literal["ella"] = Field(default="ella", description="entries that earlier updates moved are costly to move")
    strength: Weight | list[Weight] = Field(
        default=3e4,
        description="lambda, weight of the mean over modules; per stage. What counts is lambda / L: 208 on T5-Large's q and "
        "v, 500 on a model of 30 layers; keep it when `method.targets` changes",
    )
    penalty: Literal["auto", "exact", "factored"] = Field(
        default="auto",
        description="the term as it is, or with E^2 of rank one; auto = exact up to 1e8 numbers in all E",
    )
    energy: Literal["sum", "squares"] = Field(
        default="sum", description="E^2: the square of the sum of earlier updates, or the sum of their squares"
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """lambda may change from stage to stage."""
        return super().per_stage_fields() | {"strength"}

    def inert(self, stage: int) -> frozenset[str]:
        """Nothing of the penalty acts at stage 1, where there is no earlier update."""
        return super().inert(stage) | ({"strength", "penalty", "energy"} if stage == 1 else set())


class Ella(LoraMethod[EllaParams]):
    """IncLoRA with the penalty on what earlier updates moved."""

    Params = EllaParams
    about = About(
        title="a new branch per task, kept small where earlier ones moved a weight",
        paper="ELLA, arXiv 2601.02232",
        trains="A and B of a new branch",
        growth="r (d_in + d_out) per adapted module and task",
        frozen="the backbone and all earlier branches",
        penalised="the new update times the sum of all earlier ones, entrywise (squared Frobenius norm, mean over modules)",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "The paper merges each branch into the backbone and keeps one weight; here the branches stay, so that a state "
            "is what its stages added. The function is the same; over an fp32 weight they cost what one weight costs.",
            "The re-implementation adds the penalty in every micro-step, moves E from the host for it, scores before it "
            "merges, and trains decoder-only models on their prompts too; none of that is done here.",
            "`energy=squares` and `penalty=factored` are not the paper's.",
        ),
    )

    @classmethod
    def takes(cls, params: EllaParams) -> bool:
        """Stages are branches; one from elsewhere moves what it moves."""
        return True

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As the re-implementation: 1e-3, batches of 32, 512 tokens."""
        settings = lora_settings(family, order)
        settings["train"] |= {"lr": 1e-3, "batch_size": 32}
        settings["data"] = {"max_source_tokens": 512}
        return settings

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Also make what the factored term needs of the earlier branches, where it is asked for."""
        super().install(backbone, state)
        layers = self.branches.layers
        size = sum(len(layer.up) * layer.down.shape[1] for layer in layers.values())
        exact = self.params.penalty == "exact" or (self.params.penalty == "auto" and size <= EXACT_UP_TO)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        if not exact and self.branches.count > 1:
            self.factors = {path: factors(energy(layer, self.params.energy)) for path, layer in layers.items()}

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The mean over modules of the overlap with the earlier updates, from the second stage on."""
        if self.branches.count == 1:
            return {}
        return {"overlap": Penalty(self._overlap(), at_stage(self.params.strength, self.info.stage))}

    def _overlap(self) -> Tensor:
        """The mean over modules of || s B A * E ||_F^2, or of its factored form."""
        scale = self.params.alpha / self.params.rank

        def overlap(path: str, layer: StackedLora) -> Tensor:
            if self.factors:
                return factored(layer.down, layer.up, scale, *self.factors[path])
            return (energy(layer, self.params.energy) * (layer.up @ (scale * layer.down)).square()).sum()

        return per_module(self.branches, overlap).mean()


@torch.no_grad()
def energy(layer: StackedLora, kind: str) -> Tensor:
    """E^2 (d_out, d_in) in fp32 of a module's frozen branches, as they act in the forward pass."""
    down, up = layer.frozen_a.float(), layer.frozen_b.float()
    if kind == "sum":
        return (up @ down).square()
    parts = zip(up.split(layer.frozen_ranks, dim=1), down.split(layer.frozen_ranks), strict=True)
    return sum(((b @ a).square() for b, a in parts), torch.zeros(len(up), down.shape[1], device=up.device))


def factors(squares: Tensor) -> tuple[Tensor, Tensor]:
    """u (d_out,) and v (d_in,) of E^2 (d_out, d_in) ~ u v^T: row sums, and column sums over the total."""
    total = squares.sum()
    return squares.sum(dim=1), squares.sum(dim=0) / total.clamp(min=torch.finfo(squares.dtype).tiny)


def factored(down: Tensor, up: Tensor, scale: float, rows: Tensor, columns: Tensor) -> Tensor:
    """s^2 tr[(B^T diag(u) B) (A diag(v) A^T)] of one module."""
    left, right = up.T @ (rows[:, None] * up), (down * columns) @ down.T
    return scale**2 * (left * right.T).sum()
