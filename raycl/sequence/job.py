"""A sequence ready to run: what to do, on what, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from raycl.models.fingerprint import fingerprint
from raycl.sequence.plan import Plan, make_plan, stage_tasks
from raycl.spec import ModelSpec, RunSpec
from raycl.state.environment import describe_environment
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task


@dataclass(frozen=True)
class SequenceJob:
    """Everything a sequence needs but a place to run. Holds no tensor and can be sent to another process."""

    spec: RunSpec
    plan: Plan
    tasks: list[Task]
    """The tasks of the order, first to last."""
    store: Store
    environment: dict[str, Any]
    """Recorded in the manifests of the stages it makes; see `describe_environment`."""

    @cached_property
    def stage_tasks(self) -> list[Task]:
        """What each stage trains on: one task after another, or for a joint method all of them at once."""
        return stage_tasks(self.spec, self.tasks)

    def task(self, name: str) -> Task:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)


def make_job(spec: RunSpec, store: Store, tasks: list[Task] | None = None) -> SequenceJob:
    """Load the tasks (unless they are given), name every stage and cell. Nothing is trained.

    Raises UserError for data or a model that cannot be read.
    """
    tasks = load_tasks(spec.tasks, spec.data) if tasks is None else tasks
    model = known_fingerprint(spec.model)  # pyright: ignore[reportArgumentType]  # a frozen model has a hash
    plan = make_plan(spec, tasks, model)
    return SequenceJob(spec, plan, tasks, store, known_environment())


@lru_cache(maxsize=8)
def known_fingerprint(model: ModelSpec) -> str:
    """The model's fingerprint, computed once in a process."""
    return fingerprint(model)


@lru_cache(maxsize=1)
def known_environment() -> dict[str, Any]:
    """The environment's description, made once in a process: it asks git."""
    return describe_environment()
