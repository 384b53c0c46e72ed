"""Families of tasks: one branch for tasks whose inputs cannot be told apart, merged after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from raycl.adapters.branches import Branches
from raycl.adapters.matrix_gain import merged
from raycl.methods.common.base import Moments
from raycl.state.stage_state import Branch, StagePart

GAIN = "gain/"
"""What S of a layer is called in a part, and C among the moments, before the layer's path."""
FAMILY = "family"
"""The fact that names a part's family: by its first task."""


@dataclass(frozen=True)
class Family:
    """What a stage goes on from: the newest branch of its family and the sums S behind it."""

    name: str
    """The family's first task."""
    branch: Branch | None = None
    """None for a first task."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """S (r, r) by layer."""

    def start(self, branches: Branches, generator: torch.Generator) -> None:
        """Begin at the family's branch, if it has one; its A stays, so that what is learned can be merged."""
        if self.branch is not None:
            branches.start(self.branch.a, self.branch.b, generator, train="B")

    def merge(self, trained: Branch, moments: Moments) -> tuple[Branch, dict[str, Tensor]]:
        """The family's branch after a stage, and its sums S, named as a part holds them; fp32."""
        own = {path: moments[GAIN + path].value.cpu() for path in trained.b}
        sums = {GAIN + path: (own[path] + self.sums[path] if self.sums else own[path]).float() for path in own}
        if self.branch is None:
            return trained, sums
        before, b = self.branch.b, trained.b
        b = {path: merged(before[path], b[path], own[path], self.sums[path]).float().contiguous() for path in b}
        return replace(trained, b=b), sums


def family_of(parts: Sequence[StagePart], index: int) -> Family:
    """The family of one part, as its newest part left it."""
    name = parts[index].facts[FAMILY]
    newest = next(part for part in reversed(parts) if part.facts[FAMILY] == name)
    sums = {key.removeprefix(GAIN): value for key, value in newest.tensors.items() if key.startswith(GAIN)}
    return Family(name, newest.pair, {path: value.double() for path, value in sums.items()})


def answering(parts: Sequence[StagePart]) -> list[int]:
    """For each part which part's branch answers its task: the newest of its family; without families its own."""
    newest = {part.facts.get(FAMILY, part.task): index for index, part in enumerate(parts)}
    return [newest[part.facts.get(FAMILY, part.task)] for part in parts]
