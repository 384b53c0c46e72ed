"""The data-parallel workers of a stage, as the stage code sees them: rank, sums, gathers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """This process among `world` data-parallel workers."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors up over the workers, in place; every worker ends with the same values."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker rank 0's values, in place. Decompositions are unique only up to sign and rotation."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """One small object from each worker, in rank order, on every worker."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world > 1:
            dist.barrier()


def set_threads(threads: int) -> None:
    """Fix the number of CPU threads of torch: results on CPU depend on it in the last bits."""
    torch.set_num_threads(max(1, threads))


def cores() -> int:
    """The CPU cores that this process may use: as many as OMP_NUM_THREADS says, where it is set."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_device() -> str:
    """The device of a process that has this machine to itself: its first GPU, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"
