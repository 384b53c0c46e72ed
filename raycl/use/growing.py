"""A state that goes on: one task more after its last stage, or one task less where the method can take it out exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raycl.errors import SpecError, shown
from raycl.events import Listener
from raycl.methods.registry import method_class
from raycl.sequence.driver import Options, run_job
from raycl.sequence.job import make_job
from raycl.tasks.catalogue import open_catalogue
from raycl.use.heads import Head, with_tasks


@dataclass(frozen=True)
class Appended:
    """One stage more, and what it did to the others."""

    head: Head
    """The state with the new task."""
    before: Mapping[str, float]
    """Score of each earlier task before the new stage, 0 to 100."""
    after: Mapping[str, float]
    """The same after it, and that of the new task."""

    @property
    def forgetting(self) -> float:
        """By how much the scores of the earlier tasks fell on average; below 0 they rose."""
        return math.fsum(self.before[task] - self.after[task] for task in self.before) / len(self.before)


def append(
    head: Head,
    task: str,
    options: Options,
    stream: str | None = None,
    listeners: list[Listener] | None = None,
    imported: str | None = None,
) -> Appended:
    """Train one stage more, on `task`, after the last one of `head`; what is stored of it is found.

    With `imported`, the hash of an adapter in the store, that is the stage, and nothing is trained.

    `stream` is a file that has the new task, and those of the run if they are the user's own; none = the run's. The old
    state stays as it is. Raises SpecError for a task that is there already or unknown, and for settings or data under which
    the earlier stages would be others than those of `head`.
    """
    known = open_catalogue(stream or head.spec.data.stream)
    name = known.require(task)
    if name in head.spec.tasks:
        raise SpecError(
            f"task {shown(name)}: is the {head.spec.tasks.index(name) + 1}. of {head.name} already; name another one"
        )
    missing = [one for one in head.spec.tasks if one not in known.tasks]
    if missing:
        raise SpecError(
            f"--stream {stream}: has no task {shown(missing[0])} of {head.name}; put the new task into the run's stream"
        )
    spec = with_tasks(head.spec, [*head.spec.tasks, name], list(range(len(head.spec.tasks))))
    if stream:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"stream": stream})})
    if imported:
        spec = spec.model_copy(update={"imported": spec.imported | {name: imported}})
    job = make_job(spec, head.store)
    keys = tuple(stage.key for stage in job.plan.stages)
    if keys[:-1] != head.stages:
        changed = next(i for i, (old, new) in enumerate(zip(head.stages, keys, strict=False)) if old != new)
        raise SpecError(
            f"{head.name}: with today's data, model and raycl its stage {changed + 1} ({spec.tasks[changed]}) would be "
            "another one, so nothing can go on from it; next step: use the data and the model that it was trained with"
        )
    matrix = run_job(job, options, listeners).matrix
    grown = Head(head.name, spec, keys, head.store, {one.name: one.record for one in job.tasks})
    return Appended(grown, matrix.seen(len(keys) - 1), matrix.seen(len(keys)))


def forget(head: Head, task: str) -> Head:
    """The state without a task: what a run of the other tasks alone would have ended with, exactly. Nothing is trained.

    Raises SpecError for a task that is not there, for the last one left, and where later stages stand on the task's own.
    """
    if task not in head.spec.tasks:
        raise SpecError(f"task {shown(task)}: is none of {head.name}; allowed: {', '.join(head.spec.tasks)}")
    place = head.spec.tasks.index(task)
    others = [one for one in head.spec.tasks if one != task]
    method = head.spec.method
    if not method_class(method.name).alone(method):
        later = len(head.stages) - place - 1
        raise SpecError(
            f"method {method.name}: cannot take {shown(task)} out of {head.name}: "
            + (f"{later} stages were trained on top of it" if later else "the weights have learned it")
            + f"; allowed: methods whose stages depend on no other, such as route_lora; next step: train the others anew, "
            f"{len(others) - place} of {len(others)} stages: raycl run --order {','.join(others)}"
        )
    if not others:
        raise SpecError(f"task {shown(task)}: is all that {head.name} has learned")
    left = [index for index, one in enumerate(head.spec.tasks) if one != task]
    records = {name: record for name, record in head.records.items() if name != task}
    stages = tuple(head.stages[index] for index in left)
    return Head(head.name, with_tasks(head.spec, others, left), stages, head.store, records)
