"""Which earlier task resembles the current one: a tree over the tasks, and a bandit that compares with few of them.

Tasks are the arms, numbered from 0; every adapted layer has a bandit of its own. Vectors describe a task at a layer; layers
may differ in their vectors' sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Bandit:
    """Mean distances of the arms, layer by layer, with lower confidence bounds. All tensors on the CPU."""

    def __init__(self, arms: int, layers: int) -> None:
        self.counts = torch.zeros(arms, layers)
        """How often an arm was compared."""
        self.totals = torch.zeros(arms, layers)
        """Sums of the distances that were seen."""

    def bounds(self, step: int, steps: int) -> Tensor:
        """Mean distance - sqrt(log(2 N (k + 1) (k + 2)) / (2 n)) at step k (from 0) of N; shape (arms, layers).

        An arm never compared counts as n = 5e-6, so that it comes first.
        """
        width = math.sqrt(math.log(2 * steps * (step + 1) * (step + 2)))
        return self.totals / self.counts.clamp(min=1) - width / (2 * self.counts + 1e-5).sqrt()

    def observe(self, choice: Tensor, distances: Tensor) -> None:
        """Take up the distance of the arm chosen in each layer; both (layers,)."""
        at = choice, torch.arange(len(choice))
        self.counts[at] += 1
        self.totals[at] += distances


def groups(vectors: Sequence[Sequence[Tensor]], levels: int) -> list[list[int]]:
    """The arms in the nodes of a KD-tree `levels` below its root; `vectors[arm][layer]`.

    A node at depth d is split at layer d: arms whose vector is at least as similar to the node's mean vector (inner product)
    as the (lower) median arm's go left. Where that leaves a side empty, the arms are halved in their order.
    """
    nodes = [list(range(len(vectors)))]
    for depth in range(min(levels, len(vectors[0]) if vectors else 0)):
        nodes = [side for node in nodes for side in _split(node, [arm[depth] for arm in vectors])]
    return nodes


def choose(bounds: Tensor, nodes: Sequence[Sequence[int]], generator: torch.Generator | None) -> Tensor:
    """One arm per layer, (layers,): the node of the best arm over all layers, and in it the best arm of each layer.

    Best is the least bound, or, with a generator, a draw from softmax(-bound); a layer's draw sees the bounds over their
    range within the node.
    """
    overall = bounds.sum(dim=1, keepdim=True)
    first = int(_pick(overall, generator))
    node = next(node for node in nodes if first in node)
    inside = bounds[node]
    if generator is not None:
        inside = inside / (inside.max() - inside.min() + 1e-5)
    return torch.tensor(node)[_pick(inside, generator)]


def distance(left: Tensor, right: Tensor, relative: bool) -> Tensor:
    """The L1 distance of two vectors; relative to the sum of their L1 norms it lies in [0, 1]. A scalar on the CPU."""
    apart = (left - right).abs().sum()
    if relative:
        apart = apart / (left.abs().sum() + right.abs().sum()).clamp(min=torch.finfo(torch.float32).tiny)
    return apart.cpu()


def _split(node: list[int], vectors: Sequence[Tensor]) -> list[list[int]]:
    """The two sides of a node, or the node alone if it has one arm."""
    if len(node) < 2:
        return [node]
    stacked = torch.stack([vectors[arm].flatten() for arm in node])
    similarities = stacked @ stacked.mean(dim=0)
    left = similarities >= similarities.median()
    sides = [[arm for arm, inside in zip(node, left.tolist(), strict=True) if inside == side] for side in (True, False)]
    return sides if all(sides) else [node[: len(node) // 2], node[len(node) // 2 :]]


def _pick(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """Per column the row of the least score, or a draw from softmax(-score) over the rows."""
    if generator is None:
        return scores.argmin(dim=0)
    return torch.multinomial(torch.softmax(-scores.T, dim=1), 1, generator=generator)[:, 0]
