"""What the LoRA methods share: the shape of a branch, and one method object that owns the branches of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from pydantic import Field, field_validator

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import Branches, LoraShape
from raycl.adapters.targets import read_targets
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import InPeft, Method, Moments
from raycl.spec import MethodParams
from raycl.state.stage_state import Branch, StagePart, StageState


class LoraParams(MethodParams):
    """Hyper-parameters of a LoRA branch: W x + (alpha / rank) B A x."""

    rank: PositiveInt = Field(default=8, description="rank r of a branch")
    alpha: float = Field(default=32.0, gt=0, description="LoRA's alpha; the branch is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the branch's input while training")
    targets: list[str] | None = Field(
        default=None,
        description="linear modules to adapt: names, `re:` and a regular expression of whole paths, or `all-linear`; none = "
        "query and value, found by structure",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        return read_targets(value)

    @property
    def shape(self) -> LoraShape:
        """The branch's shape for the adapters."""
        targets = tuple(self.targets) if self.targets else None
        return LoraShape(self.rank, self.alpha, self.dropout, targets)


class MixParams(LoraParams):
    """Hyper-parameters of a method that serves a plain sum of branches: W x + sum_i c_i (alpha / rank) B_i A_i x.

    The c_i are the user's, 1 unless set: the calibrated linear combination of LoRA modules of arXiv 2512.09910.
    """

    mix: list[float] | None = Field(
        default=None,
        description="c_1, c_2, ...: weight of each task's branch in the served model, first task first; after stage t the "
        "first t count; training does not see them; none = all 1",
    )

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """Every stage adds a branch, so there is one weight per stage."""
        return super().per_stage_fields() | {"mix"}

    def inert(self, stage: int) -> frozenset[str]:
        """The weights act on the served model only."""
        return super().inert(stage) | {"mix"}

    def serving(self) -> Json:
        """The weights, unless they change nothing."""
        plain = self.mix is None or all(weight == 1 for weight in self.mix)
        return super().serving() | ({} if plain else {"mix": self.mix})


L = TypeVar("L", bound=LoraParams)


class LoraMethod(Method[L]):
    """A method whose stage is one LoRA branch. Subclasses say what is stacked frozen and what trains."""

    branches: Branches

    @classmethod
    def in_peft(cls, params: L) -> InPeft:
        """The sum of all branches, plain or under the user's weights."""
        acting = params.serving()
        return ("fixed" if acting.keys() == {"mix"} else "none") if acting else "sum"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Stack the frozen branches and start a new one: A Kaiming-uniform, B = 0."""
        self.branches = Branches(backbone, self.params.shape, state.branches)
        self.branches.start(None, None, self.info.generator("branch"))

    def take(self, branch: Branch) -> None:
        """As the current branch."""
        self.branches.take(branch, self.params.shape)

    def consolidate(self, moments: Moments) -> StagePart:
        """The trained branch."""
        return StagePart(self.info.task, branch=self.branch(), facts=self.facts())

    def branch(self) -> Branch:
        """The current branch, copied out."""
        a, b = self.branches.current()
        return Branch(self.params.rank, self.params.alpha, a, b)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches of the state, frozen."""
        self.serve_branches(backbone, state.branches)

    def serve_branches(self, backbone: Backbone, branches: Sequence[Branch]) -> None:
        """Stack all but the newest branch and hold the newest as the current one, nothing trainable."""
        newest = branches[-1]
        self.branches = Branches(backbone, self.params.shape, branches[:-1])
        self.branches.start(newest.a, newest.b, self.info.generator("branch"), train="")
        if isinstance(self.params, MixParams) and self.params.mix is not None:
            self._mix(self.params.mix, backbone, len(branches))

    def remove(self) -> None:
        """Take the adapters off; after an installation that failed early there may be none."""
        if hasattr(self, "branches"):
            self.branches.remove()

    def _mix(self, weights: Sequence[float], backbone: Backbone, branches: int) -> None:
        """Weigh the branches by constants, the same in every layer and for every token."""
        if len(weights) != max(self.info.stages, branches):
            raise ValueError(
                f"method.mix: {len(weights)} values; wanted: one per branch of the whole sequence, "
                f"{max(self.info.stages, branches)}"
            )
        constant = torch.tensor(weights[:branches], device=backbone.device)[None, None]
        self.branches.mix_by(lambda layer, old, new: constant)
