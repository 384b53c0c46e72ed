"""The data-parallel workers of a stage, as the stage code sees them: rank, sums, gathers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _nothing() -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Workers:
    """This process among `world` data-parallel workers."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    beat: Callable[[], None] = field(default=_nothing, kw_only=True)
    """Called whenever something has moved on, for whoever watches."""

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors up over the workers, in place; every worker ends with the same values."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
            self.beat()

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
        self.beat()
        return gathered

    def agreed(self, seen: Any) -> Any:
        """What rank 0 has seen, on every worker: where others write meanwhile, no two see the same."""
        return self.gather(seen)[0]

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world > 1:
            dist.barrier()


def meet(folder: Path, rank: int, world: int, patience: timedelta) -> Workers:
    """As one of `world` processes on the CPUs of this machine, meet the others in a file of `folder`, which all name.

    The environment is that of torchrun, as DeepSpeed wants it. A process that waits longer than `patience` for another one
    gives up.
    """
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torch.set_num_threads(1)
    method = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world, timeout=patience)
    return Workers(rank, world)


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


def device_name(device: str) -> dict[str, str]:
    """`device_name` -> what a GPU calls itself; empty for a CPU."""
    return {} if device == "cpu" else {"device_name": torch.cuda.get_device_name(device)}
