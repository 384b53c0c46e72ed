"""The stage state: all that the next stage needs, as an append-only chain of parts.

A stage adds one part; a part never changes. The state after stage t is the parts 1..t, so the total storage of a
sequence grows linearly with its length, and "frozen means frozen" holds by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Branch:
    """One task's LoRA pair on every target module.

    `a[path]` has shape (rank, d_in), `b[path]` (d_out, rank); the update of module `path` is (alpha / rank) * b @ a.
    """

    rank: int
    alpha: float
    a: dict[str, torch.Tensor]
    b: dict[str, torch.Tensor]

    @property
    def length(self) -> float:
        """The Frobenius norm of the update over all modules: |(alpha / rank) b a|^2 is the sum of (b^T b) * (a a^T)."""
        squares = 0.0
        for path, a in self.a.items():
            a, b = a.detach().double(), self.b[path].detach().double()
            squares += float(((b.T @ b) * (a @ a.T)).sum())
        return abs(self.alpha) / self.rank * max(squares, 0.0) ** 0.5


@dataclass(frozen=True)
class StagePart:
    """What one stage added: at most one branch, named tensors, and JSON facts of the method."""

    task: str
    branch: Branch | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> Branch:
        """The part's branch. Raises ValueError where it has none."""
        if self.branch is None:
            raise ValueError(f"the part of task {self.task!r} holds no branch")
        return self.branch


@dataclass(frozen=True)
class StageState:
    """The parts of stages 1..t, oldest first; empty before the first stage."""

    parts: tuple[StagePart, ...] = ()

    @property
    def stage(self) -> int:
        """Number of stages done."""
        return len(self.parts)

    @property
    def last(self) -> StagePart | None:
        """The newest part, or none before the first stage."""
        return self.parts[-1] if self.parts else None

    @property
    def newest(self) -> StagePart:
        """The newest part. Raises ValueError before the first stage."""
        if not self.parts:
            raise ValueError("the stage state is empty: no stage was done yet")
        return self.parts[-1]

    @property
    def branches(self) -> list[Branch]:
        """All branches, oldest first."""
        return [part.branch for part in self.parts if part.branch is not None]

    def append(self, part: StagePart, last_only: bool = False) -> StageState:
        """The state after one more stage; with `last_only`, earlier parts keep their facts and drop their tensors."""
        earlier = (StagePart(old.task, facts=old.facts) for old in self.parts) if last_only else self.parts
        return StageState((*earlier, part))
