"""A stage between the right to make it and the store: what runs it, and what is published of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raycl.adapters.branches import adapter_config
from raycl.events import START_UP, StageEnd, to_json
from raycl.sequence.job import SequenceJob
from raycl.sequence.plan import StagePlan
from raycl.state.lease import Lease
from raycl.state.manifest import Provenance
from raycl.state.stage_state import StagePart
from raycl.train.stage import StageRun
from raycl.train.workers import device_name


@dataclass(frozen=True)
class Making:
    """One stage that a process makes."""

    stage: StagePlan
    right: Lease
    stands_on: str | None
    """Digest of the parent's state as it was when the stage began; none = no parent."""
    run: StageRun
    packed: int = 1
    """Siblings that train at once, this one included."""

    @property
    def runtime(self) -> dict[str, object]:
        """Where and how it was run, for the manifest; no part of what names it."""
        workers, seconds = self.run.workers, self.run.seconds
        return {
            "workers": workers.world,
            "device": workers.device,
            **device_name(workers.device),
            **({"packed": self.packed} if self.packed > 1 else {}),
            "process": os.getpid(),
            "seconds": seconds,
            "trainable_parameters": self.run.trainable,
        }


def publish(
    making: Making, part: StagePart, job: SequenceJob, start_up: float, adapted: dict[str, int], found: tuple[str, ...]
) -> None:
    """Write a stage into the store and report its end.

    `start_up` are the seconds that the process took to start, 0 for all stages but its first; `adapted` the modules that
    carry adapters, as `Adapted` tells them; `found` the signs that something may have gone wrong.
    """
    stage, run, store = making.stage, making.run, job.store
    if start_up:
        run.seconds[START_UP] = start_up
    gauges = run.method.measures() | run.gauges
    end = StageEnd(stage.stage, stage.task, stage.key, False, run.seconds, gauges, health=found)
    adapter = None if part.branch is None else adapter_config(run.model.backbone, part.branch, None)
    model = {"name": run.model.name, **run.model.record, **({"adapted": adapted} if adapted else {})}
    provenance = Provenance(
        recipe=stage.recipe,
        stage=stage.recipe["stage"],
        parent=stage.parent,
        parent_digest=making.stands_on,
        adapter_config=adapter,
        environment=job.environment,
        runtime={**making.runtime, "model": model},
        log=[to_json(event) for event in (*run.log, end)],
    )
    store.publish(part, provenance)
    store.drop_partial(stage.key)
    run.report(end)
