"""A method that nobody needs: one trained vector before every prompt. It shows what a new method consists of.

Equation: the prompt's embeddings are [v, Emb(x)], with v (1, d) trained at every stage, starting as `size` times noise.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from raycl.adapters.backbone import Backbone
from raycl.adapters.soft_prompts import SoftPrompt
from raycl.methods.common.base import About, Carries, Method, Moments
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState


class ToyParams(MethodParams):
    """The toy's hyper-parameters."""

    name: Literal["toy"] = Field(default="toy", description="one vector before every prompt")
    size: float = Field(default=0.5, ge=0, description="standard deviation of the vector at the start")


class ToyMethod(Method[ToyParams]):
    """Train one vector."""

    Params = ToyParams
    about = About("one vector before every prompt", "none", "one vector", "none", state={"vector": "(1, d)"})

    @classmethod
    def carries(cls, params: ToyParams) -> Carries:
        """The last part holds the vector."""
        return "last"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the vector, or draw one."""
        noise = torch.randn(1, backbone.width, generator=self.info.generator("vector")) * self.params.size
        self._put(backbone, state.last.tensors["vector"] if state.last else noise, train=True)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The last vector."""
        self._put(backbone, state.newest.tensors["vector"], train=False)

    def soft_prompt(self) -> SoftPrompt:
        """The vector, for every example."""
        return SoftPrompt(self.vectors["v"][None])

    def modules(self) -> dict[str, nn.Module]:
        """The vector's module."""
        return {"vectors": self.vectors}

    def consolidate(self, moments: Moments) -> StagePart:
        """The vector."""
        return StagePart(self.info.task, tensors={"vector": self.vectors["v"].detach().cpu().clone()})

    def remove(self) -> None:
        """Nothing sits on the backbone."""

    def _put(self, backbone: Backbone, value: torch.Tensor, train: bool) -> None:
        vector = nn.Parameter(value.clone().to(backbone.device), requires_grad=train)
        self.vectors = nn.ParameterDict({"v": vector})
