"""One branch for each row of a batch: only the branch that a row takes is computed, whatever the number of branches.

y_b = W x_b + s_j B_j A_j x_b,   j = the branch of row b, or none
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.adapters.branches import Branches
from raycl.state.stage_state import Branch

NONE = -1
"""The choice of a row that takes no branch."""

Groups = list[tuple[int, "Tensor | None"]]
"""The branches that are taken in a batch, each with the rows (n,) that take it; none = all rows."""


def grouped(choice: Tensor) -> Groups:
    """The rows of a batch by the branch that each takes: `choice` (B,) holds indices from 0, or `NONE`."""
    taken = choice.unique().tolist()
    if len(taken) == 1:
        return [] if taken == [NONE] else [(taken[0], None)]
    return [(index, (choice == index).nonzero()[:, 0]) for index in taken if index != NONE]


def choose(branches: Branches, stored: Sequence[Branch], groups: Callable[[], Groups]) -> None:
    """Let every layer add, in the place of its own branches, the stored branch that `groups` gives for each row.

    The arithmetic is that of one branch alone: where all rows of a batch take the same, bit for bit.
    """
    device = branches.backbone.device
    branches.update_by({path: Chosen([_pair(one, path, device) for one in stored], groups) for path in branches.layers})


class Chosen:
    """The update of one layer: the branch of each row."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor, float]], groups: Callable[[], Groups]) -> None:
        """A (r, d_in), B (d_out, r) and alpha / r of every branch, and what gives the groups of the batch at hand."""
        self.pairs = pairs
        self.groups = groups

    def __call__(self, x: Tensor) -> Tensor | None:
        """s_j B_j A_j x_b for each row b of x (B, S, d_in): (B, S, d_out); none where no row takes a branch."""
        whole: Tensor | None = None
        for index, rows in self.groups():
            if rows is None:
                return self._branch(index, x)
            part = self._branch(index, x[rows])
            whole = part.new_zeros(x.shape[0], *part.shape[1:]) if whole is None else whole
            whole[rows] = part
        return whole

    def _branch(self, index: int, x: Tensor) -> Tensor:
        a, b, scale = self.pairs[index]
        return F.linear(F.linear(x, a) * scale, b)


def _pair(branch: Branch, path: str, device: torch.device) -> tuple[Tensor, Tensor, float]:
    return branch.a[path].to(device), branch.b[path].to(device), branch.alpha / branch.rank
