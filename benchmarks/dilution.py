"""Experiment D: is softmax dilution all of AM-LoRA's forgetting?

Nothing is trained. The state after stage 1 is served with 1, 2 and 3 branches more that are zero, whose selectors are zero
too: each only adds e^0 to the softmax's sum, as a new task's branch does when its stage begins. The first task's scores are
set beside those that the whole sequence had after its stages.
"""

from __future__ import annotations

from typing import Any

import torch

from raycl.comparison.grid import GridCell
from raycl.methods.am_lora import SELECTOR
from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build
from raycl.sequence.history import stored_matrix
from raycl.sequence.job import SequenceJob
from raycl.sequence.local import worker_here
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.train.generation import Decoder
from raycl.train.workers import cores, local_device

BRANCHES = (0, 1, 2, 3)


def with_zero_branches(state: StageState, count: int) -> StageState:
    """The state of AM-LoRA with `count` more stages whose branches and selectors are zero."""
    for number in range(1, count + 1):
        last = state.newest
        zeros = [{path: torch.zeros_like(value) for path, value in pair.items()} for pair in (last.pair.a, last.pair.b)]
        rows = {name: value for name, value in last.tensors.items() if name.startswith(SELECTOR)}
        longer = {name: torch.cat([value, torch.zeros_like(value[:1])]) for name, value in rows.items()}
        branch = Branch(last.pair.rank, last.pair.alpha, *zeros)
        state = state.append(StagePart(f"zero {number}", branch, last.tensors | longer, last.facts))
    return state


def dilution(cells: list[GridCell], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a cell whose first stage is in the store. Stages of `known` records are not scored again, nor those that
    orders share."""
    scores = {record["stage_key"]: record["diluted"] for record in known}
    found = []
    for cell in cells:
        if cell.job is None or not cell.job.store.has(cell.job.plan.stages[0].key):
            continue
        key = cell.job.plan.stages[0].key
        if key not in scores:
            scores[key] = _scores(cell.job)
        matrix = stored_matrix(cell.job.store, cell.job.plan, cell.job.spec.tasks)
        first = cell.job.spec.tasks[0]
        after = [matrix.get(stage, first) for stage in range(1, len(cell.job.plan.stages) + 1)]
        named = {"label": cell.entry.label, "order": cell.order, "seed": cell.seed, "stage_key": key}
        found.append(named | {"task": first, "diluted": scores[key], "after stages": after})
    return found


def _scores(job: SequenceJob) -> list[float]:
    """The first task's score under each number of zero branches."""
    worker = worker_here(job, cores(), local_device())
    state = job.store.read_state(job.plan.stages[0].key)
    scores = []
    for count in BRANCHES:
        method = build(job.spec.method, StageInfo(1, len(job.plan.stages), job.spec.tasks[0], job.spec.seed))
        try:
            method.serve(worker.model.backbone, with_zero_branches(state, count))
            decoder = Decoder(worker.model, method, worker.encoder, job.spec.eval.batch_size, worker.workers)
            scores.append(decoder.score(job.tasks[0]).score)
        finally:
            method.remove()
    return scores
