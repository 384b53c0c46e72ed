"""What a part of a routed method keeps of its task's features, and which earlier task is most like a new one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raycl.adapters.gaussian_router import GaussianRouter, TaskSums
from raycl.state.stage_state import StagePart

MEAN, SCATTER, FOURTH, DISTANCES = "feature_mean", "feature_scatter", "feature_fourth", "feature_distances"
"""Names of a part's tensors."""


def sums_of(part: StagePart, device: torch.device) -> TaskSums:
    """The sums that a part holds."""
    held = {name: part.tensors[name].to(device) for name in (MEAN, SCATTER, FOURTH)}
    return TaskSums(held[MEAN].double(), part.facts["count"], held[SCATTER], held[FOURTH].item())


def nearest(earlier: Sequence[TaskSums], own: TaskSums) -> int:
    """The earlier task whose mean is nearest to that of a new one, by the covariance of all of them."""
    router = GaussianRouter([*earlier, own])
    return int(router.distances(own.mean[None])[0, :-1].argmin())


def closest(earlier: Sequence[TaskSums], own: TaskSums) -> tuple[int, float]:
    """The earlier task of which a router of the two tells the fewest inputs apart, and their share, both ways on average."""
    shares = [GaussianRouter([task, own]).told_apart().mean().item() for task in earlier]
    return min(range(len(shares)), key=shares.__getitem__), min(shares)
