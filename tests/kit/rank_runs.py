"""Sequences run by one of several data-parallel processes: Ray Train's local mode under torchrun's environment."""

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
            events = run_case(case, place / "store")
        except Exception:
            (place / f"error-{rank}").write_text(traceback.format_exc())
            os._exit(3)  # the other process waits for this one and would wait for ever
        if rank == 0:
            (place / "events.json").write_text(json.dumps(events))


def run_case(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Run one case in this process and return its events."""
    from raycl.models.load import fingerprint
    from raycl.sequence.group import run_workers
    from raycl.sequence.plan import make_plan
    from raycl.sequence.resolve import resolve
    from raycl.state.store import Store
    from raycl.tasks.load import load_tasks

    spec = resolve("laptop", case.layers, 0)
    tasks = load_tasks(spec.tasks, spec.data)
    plan = make_plan(spec, tasks, fingerprint(spec.model))
    events: list[dict[str, Any]] = []
    run_workers(spec, plan, tasks, Store(str(folder)), 0, {}, events.append)
    return events
