"""What a method trains when it does not care: one LoRA branch, or all weights of the backbone.

SeqFT, Replay, EWC, MTL and their like are defined for any set of trainable weights; they hold a `Trainee` and never ask
which one it is. A trainee continues from the last part, and only the last part is needed to serve it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import Branches, LoraShape
from raycl.adapters.full_weights import FullWeights
from raycl.methods.common.lora import LoraParams
from raycl.state.stage_state import Branch, StagePart

WEIGHTS = "weights/"
"""Prefix of a part's tensors: the backbone's weights after the stage, fp32, by parameter name."""
LORA_FIELDS = frozenset(LoraParams.model_fields) - {"name"}


class TrainedParams(LoraParams):
    """Hyper-parameters of a method that trains a LoRA branch or all weights."""

    trains: Literal["lora", "full"] = Field(default="lora", description="what trains: one LoRA branch, or all weights")

    def inert(self, stage: int) -> frozenset[str]:
        """With all weights trained, the branch's shape has no effect."""
        return super().inert(stage) | (LORA_FIELDS if self.trains == "full" else set())


class Trainee(Protocol):
    """The weights that a stage trains."""

    def start(self, backbone: Backbone, last: StagePart | None, generator: torch.Generator) -> None:
        """Put trainable weights on the backbone: a copy of those in `last`, or fresh ones."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by a name that is the same at every stage."""
        ...

    def holdings(self) -> tuple[Branch | None, dict[str, Tensor]]:
        """Branch and named tensors for the stage's part."""
        ...

    def values(self, part: StagePart) -> dict[str, Tensor]:
        """The weights in a part, under the names of `parameters`."""
        ...

    def serve(self, backbone: Backbone, last: StagePart, generator: torch.Generator) -> None:
        """Put the weights in `last` on the backbone, nothing trainable."""
        ...

    def remove(self) -> None:
        """Take them off again."""
        ...


class LoraTrainee:
    """One LoRA branch."""

    def __init__(self, shape: LoraShape) -> None:
        self.shape = shape

    def start(self, backbone: Backbone, last: StagePart | None, generator: torch.Generator) -> None:
        """Continue the last branch, or start one: A Kaiming-uniform, B = 0."""
        branch = last.pair if last else None
        self.branches = Branches(backbone, self.shape, [])
        self.branches.start(branch and branch.a, branch and branch.b, generator)

    def parameters(self) -> dict[str, nn.Parameter]:
        """`a <path>` and `b <path>` of every adapted module."""
        layers = self.branches.layers
        return {f"a {path}": layers[path].down for path in layers} | {f"b {path}": layers[path].up for path in layers}

    def holdings(self) -> tuple[Branch, dict[str, Tensor]]:
        """The branch."""
        return self.branch(), {}

    def branch(self) -> Branch:
        """The branch, copied out."""
        a, b = self.branches.current()
        return Branch(self.shape.rank, self.shape.alpha, a, b)

    def values(self, part: StagePart) -> dict[str, Tensor]:
        """A and B of the part's branch."""
        branch = part.pair
        return {f"a {path}": a for path, a in branch.a.items()} | {f"b {path}": b for path, b in branch.b.items()}

    def serve(self, backbone: Backbone, last: StagePart, generator: torch.Generator) -> None:
        """The branch, frozen."""
        self.branches = Branches(backbone, self.shape, [])
        self.branches.start(last.pair.a, last.pair.b, generator, train="")

    def remove(self) -> None:
        """Take the adapters off, if there are any."""
        if hasattr(self, "branches"):
            self.branches.remove()


class FullTrainee:
    """All weights of the backbone."""

    def start(self, backbone: Backbone, last: StagePart | None, generator: torch.Generator) -> None:
        """Train fp32 copies of the last weights."""
        self.weights = FullWeights(backbone, self.values(last) if last else None, train=True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name in the backbone."""
        return self.weights.parameters

    def holdings(self) -> tuple[None, dict[str, Tensor]]:
        """All weights."""
        return None, {f"{WEIGHTS}{name}": value for name, value in self.weights.current().items()}

    def values(self, part: StagePart) -> dict[str, Tensor]:
        """All weights in the part."""
        found: Mapping[str, Tensor] = part.tensors
        return {name.removeprefix(WEIGHTS): value for name, value in found.items() if name.startswith(WEIGHTS)}

    def serve(self, backbone: Backbone, last: StagePart, generator: torch.Generator) -> None:
        """The weights in the backbone's own precision."""
        self.weights = FullWeights(backbone, self.values(last), train=False)

    def remove(self) -> None:
        """Put the backbone's own weights back, if they were replaced."""
        if hasattr(self, "weights"):
            self.weights.remove()


def trainee(params: TrainedParams) -> Trainee:
    """The trainee that the hyper-parameters ask for."""
    return LoraTrainee(params.shape) if params.trains == "lora" else FullTrainee()
