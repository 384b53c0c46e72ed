"""Stages trained again, to see whether they come out as they are stored: the recheck that a hash alone is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from raycl.errors import SpecError, StoreError
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.local import worker_here
from raycl.sequence.plan import Plan, StagePlan
from raycl.state.lineage import differences
from raycl.state.manifest import ADAPTER_CONFIG, Manifest, Provenance
from raycl.state.store import Store
from raycl.train.workers import cores, local_device
from raycl.use.heads import Head


@dataclass(frozen=True)
class Audited:
    """A stage that was trained again."""

    stage: int
    task: str
    key: str
    differs: tuple[str, ...]
    """What came out otherwise: files by name, or `facts`; empty = all is the same, bit for bit."""
    surroundings: str
    """What was different where the two were made, in words."""


def audit(head: Head, share: float, seed: int = 0) -> Iterator[Audited]:
    """Train a random `share` (above 0 to 1, at least one stage) of a run's stages again, here, one after another.

    Nothing in the run's store is touched. Stages whose branch was trained elsewhere cannot be trained again and are passed
    over. Raises SpecError for a share that is none, or where no stage is left, StoreError for stages of other inputs than
    the data and files that are there now, UserError for data that cannot be read any more.
    """
    if not 0 < share <= 1:
        raise SpecError(f"--share {share}: allowed: above 0, and at most 1; next step: 0.01 for one stage in a hundred")
    job = make_job(head.spec, head.store)
    stages = [stage for stage in job.plan.stages if "imported" not in stage.recipe]
    if not stages:
        raise SpecError(f"{head.name}: has no stage that was trained here; next step: name another run")
    if strange := [stage.stage for stage in stages if not head.store.has(stage.key)]:
        raise StoreError(
            f"{head.name}: stage {strange[0]} is stored under another key than it has with the data, model files and "
            "settings that are there now; next step: give them as they were"
        )
    count = max(1, round(share * len(stages)))
    for stage in sorted(random.Random(seed).sample(stages, count), key=lambda one: one.stage):
        yield _trained_again(job, stage)


def _trained_again(job: SequenceJob, stage: StagePlan) -> Audited:
    """Train one stage from its stored parent, in a store of its own."""
    stored = job.store.manifest(stage.key)
    with TemporaryDirectory(prefix="raycl-audit-") as folder:
        own = Store(folder)
        for key in job.store.lineage(stage.parent) if stage.parent else ():
            _copy(job.store, own, key)
        worker_here(replace(job, plan=Plan([stage], []), store=own), cores(), local_device()).run()
        made = own.manifest(stage.key)
    return Audited(stage.stage, stage.task, stage.key, tuple(_differing(stored, made)), differences(made, stored))


def _copy(store: Store, to: Store, key: str) -> None:
    found = store.manifest(key)
    seen = {"environment": found.environment, "runtime": found.runtime, "log": found.log}
    to.publish(store.read(key), Provenance(found.recipe, found.stage, found.parent, **seen))


def _differing(stored: Manifest, made: Manifest) -> Iterator[str]:
    """What is not the same; an adapter's config, which stores of 0.1.0 named the model's place in, is no result."""
    for name in sorted((stored.files.keys() | made.files.keys()) - {ADAPTER_CONFIG}):
        if stored.files.get(name) != made.files.get(name):
            yield name
    if stored.facts != made.facts:
        yield "facts"
