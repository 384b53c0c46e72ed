"""Sequences run by one of several data-parallel processes, under torchrun's environment."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One sequence, run once per world size."""

    name: str
    layers: list[dict[str, Any]]
    """Layers of the run spec, as for `resolve`."""
    folder: Path
    """The world-1 store is below `1`, that of two workers below `2`; events and errors beside it."""
    ports: tuple[int, int] = (0, 0)

    def place(self, world: int) -> Path:
        """Where a world's store and notes are."""
        return self.folder / self.name / str(world)


def run_cases(scratch: Path, cases: list[Case], rank: int, world: int, ports: list[int]) -> None:
    """Run all cases as one of `world` processes, one after another; a failing case leaves its traceback."""
    for case, port in zip(cases, ports, strict=True):
        if world > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ |= {name: str(value) for name, value in ranks.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        place = case.place(world)
        place.mkdir(parents=True, exist_ok=True)
        try:
            events = run_case(case, place / "store", rank, world)
        except Exception:
            (place / f"error-{rank}").write_text(traceback.format_exc())
            os._exit(3)  # the other process waits for this one and would wait for ever
        if rank == 0:
            (place / "events.json").write_text(json.dumps(events))


def run_case(case: Case, folder: Path, rank: int, world: int) -> list[dict[str, Any]]:
    """Run one case as one of `world` processes and return its events."""
    import torch.distributed as dist

    from raycl.events import StageEvent, to_json
    from raycl.sequence.job import make_job
    from raycl.sequence.resolve import resolve
    from raycl.sequence.worker import SequenceWorker
    from raycl.state.store import Store
    from raycl.train.workers import Workers, set_threads

    set_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    events: list[StageEvent] = []
    job = make_job(resolve("laptop", case.layers), Store(str(folder)))
    SequenceWorker(job, Workers(rank, world), events.append).run()
    if world > 1:
        dist.destroy_process_group()
    return [to_json(event) for event in events]
