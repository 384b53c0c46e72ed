"""What the stages of a finished state hold, and the scores that go with it."""

from __future__ import annotations

from raycl.analysis.history import StageFacts, facts_of, log
from raycl.analysis.matrix import AccuracyMatrix
from raycl.errors import UserError
from raycl.sequence.history import stored_matrix
from raycl.sequence.job import make_job
from raycl.use.heads import Head


def facts(head: Head) -> list[StageFacts]:
    """What each stage holds, first to last; every file is read and checked."""
    manifests = head.manifests
    return [
        facts_of(entry, manifest, head.store.read(manifest.key))
        for entry, manifest in zip(log(manifests), manifests, strict=True)
    ]


def scores_of(head: Head) -> AccuracyMatrix | None:
    """The accuracy matrix of a state, as far as its store holds it; none where the run's data or model is not at hand, or is
    another one now."""
    if not head.records:
        return None
    try:
        plan = make_job(head.spec, head.store).plan
    except UserError:
        return None
    if tuple(stage.key for stage in plan.stages) != head.stages:
        return None
    return stored_matrix(head.store, plan, head.spec.tasks)
