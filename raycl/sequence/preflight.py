"""Checks of folders, stored states and worker count before anything is started."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from raycl.errors import SpecError, StoreError
from raycl.methods.registry import method_class
from raycl.sequence.plan import Plan
from raycl.spec import RunSpec
from raycl.state.lineage import ON_DRIFT
from raycl.state.store import Store
from raycl.state.upkeep import set_aside

log = logging.getLogger(__name__)
OnDrift = Literal["fail", "rebuild", "accept"]
"""What becomes of stages whose parent was made again and came out otherwise."""


def check_output(folder: Path) -> None:
    """Make the folder for matrix, plots and spec. Raises SpecError if it cannot be one or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise SpecError(f"--output {folder}: cannot be made ({error.strerror}); give another folder") from None
    if not writable:
        raise SpecError(f"--output {folder}: cannot be written; give another folder")


def check_states(plan: Plan, store: Store, stages: Collection[int], cells: Collection[str]) -> None:
    """Read the stored stages that missing `stages` and `cells` stand on, one at a time. Raises StoreError for a bad one.

    The workers would find it too, but only once they are started.
    """
    wanted = {key for cell in [*plan.cells, *plan.own] if cell.key in cells for key in cell.state}
    wanted |= {stage.parent for stage in plan.stages if stage.stage in stages and stage.parent}
    for stage in reversed(plan.stages):
        if stage.key in wanted and stage.stage not in stages:
            store.read(stage.key)
            wanted |= {stage.parent} if stage.parent else set()


def settle_drift(plan: Plan, store: Store, policy: OnDrift) -> None:
    """Look for stored stages of a plan that stand on another parent than they were trained on, and do as `policy` says.

    `fail` raises StoreError, `accept` goes on (reading them is a warning), `rebuild` sets them, all stages behind them and
    their scores aside, so that they are made anew.
    """
    stored = [stage for stage in plan.stages if store.has(stage.key)]
    found = [drift for stage in stored if (drift := store.drift(stage.key))]
    if not found or policy == "accept":
        return
    if policy == "fail":
        raise StoreError("\n".join([*(drift.words for drift in found), ON_DRIFT]))
    first = min(place for place, stage in enumerate(plan.stages) if stage.key == found[0].child.key)
    anew = {stage.key for stage in plan.stages[first:]}
    scores = {cell.key for cell in [*plan.cells, *plan.own] if anew & set(cell.state) and store.has_scores(cell.key)}
    kept = [("stages", stage.key) for stage in reversed(stored) if stage.key in anew]
    set_aside(store.uri, [*kept, *(("scores", key) for key in sorted(scores))])
    log.warning(
        "%d stages and %d scores are set aside under aside/ of the store, and made anew", len(kept), len(scores)
    )


def check_groups(spec: RunSpec) -> None:
    """Several groups of workers need stages that depend on no other, and Ray. Raises SpecError with the way out."""
    if spec.groups == 1:
        return
    if not method_class(spec.method.name).alone(spec.method):
        raise SpecError(
            f"groups: {spec.groups} groups cannot share the stages of {spec.method.name}: each goes on from the one before; "
            "allowed: 1; next step: leave --groups out, or take a method whose stages depend on no other, such as route_lora"
        )
    if spec.workers == 0:
        raise SpecError(
            f"groups: {spec.groups} groups are Ray Train's, and workers: 0 runs all in this process; "
            "next step: set --workers to 1 or more, or leave --groups out"
        )


def check_eval_workers(spec: RunSpec) -> None:
    """Workers that only score are Ray's. Raises SpecError with the way out."""
    if spec.eval.workers and spec.workers == 0:
        raise SpecError(
            f"eval.workers: {spec.eval.workers} workers that score are Ray's, and workers: 0 runs all in this process; "
            "next step: set --workers to 1 or more, or leave --eval-workers out"
        )


def check_workers(spec: RunSpec, workers: int) -> None:
    """The global batch must split evenly. Raises SpecError that names sizes that do."""
    world = max(1, workers)
    batch, micro = spec.train.batch_size, spec.train.micro_batch_size
    if batch % world:
        raise SpecError(
            f"train.batch_size: {batch} does not split over {world} workers; "
            f"take a multiple of {world}, such as {batch // world * world or world}, or another --workers"
        )
    if micro and (batch // world) % micro:
        raise SpecError(
            f"train.micro_batch_size: {micro} does not divide the {batch // world} examples of a worker "
            f"(train.batch_size {batch} / {world} workers); take one that does, such as {math.gcd(micro, batch // world)}"
        )
