"""What the store holds of a sequence, for a report: read by the plan's keys, whoever trained it. Knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from raycl.analysis.angles import branch_angles
from raycl.analysis.views import SequenceView, StageView
from raycl.sequence.history import stored_matrix, stored_seconds
from raycl.sequence.job import SequenceJob
from raycl.sequence.names import method_words
from raycl.state.manifest import ADAPTER_MODEL, Manifest
from raycl.state.stage_state import Branch
from raycl.state.store import Store
from raycl.tasks.orders import order_title, order_words
from raycl.tracking.records import flat


def view_of(
    job: SequenceJob,
    label: str | None = None,
    status: str | None = None,
    angles: bool = True,
    line: str | None = None,
) -> SequenceView:
    """Read a sequence, finished or not; nothing is trained.

    `label` none = method, order and seed; `status` none = what the store shows; `line`, the name that it shares with other
    sequences in charts, none = the method. Without `angles` no tensor is read: `with_angles` does so later.
    """
    spec, plan, store = job.spec, job.plan, job.store
    matrix = stored_matrix(store, plan, [task.name for task in job.tasks])
    stored = [stage for stage in plan.stages if store.has(stage.key)]
    scored = sum(matrix.last_stage >= stage.row for stage in plan.stages)
    done = "finished" if scored == len(plan.stages) else f"{scored} of {len(plan.stages)} stages"
    method = method_words(spec)
    view = SequenceView(
        label=label or f"{method}, {order_title(spec.order)}, seed {spec.seed}",
        line=line or method,
        order=order_title(spec.order),
        seed=spec.seed,
        params=flat(spec.model_dump(mode="json", exclude={"tasks"}) | {"order": order_words(spec.order)}),
        matrix=matrix,
        stages=[_stage(stage.stage, store.manifest(stage.key)) for stage in stored],
        status=status or done,
        scoring=stored_seconds(store, plan),
    )
    return with_angles(view, store) if angles else view


def with_angles(view: SequenceView, store: Store) -> SequenceView:
    """The view with the angles between its branches, which are read for that and let go; nothing else is read."""
    return replace(view, angles=branch_angles([_branch(store, key) for key in view.keys]))


def _branch(store: Store, key: str) -> Branch | None:
    """A stage's branch. A part without one, which may be a whole model, stays where it is."""
    return store.read(key).branch if ADAPTER_MODEL in store.manifest(key).files else None


def _stage(number: int, manifest: Manifest) -> StageView:
    return StageView(
        stage=number,
        task=manifest.task,
        key=manifest.key,
        steps=list(manifest.steps),
        gauges=_known(manifest.end.gauges),
        seconds=_known(manifest.end.seconds),
        trainable=manifest.runtime["trainable_parameters"],
        bytes=sum(record.bytes for record in manifest.files.values()),
    )


def _known(values: Mapping[str, float]) -> dict[str, float]:
    """The values that were finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
