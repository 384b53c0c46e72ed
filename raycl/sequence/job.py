"""A sequence ready to run: what to do, on what, and where its results go."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from raycl.errors import SetupError, SpecError
from raycl.files import Json, reach
from raycl.methods.registry import folders, method_params, outside_method
from raycl.models.fingerprint import fingerprint
from raycl.sections import ModelSpec
from raycl.sequence.imports import require_imports
from raycl.sequence.plan import Plan, make_plan, stage_tasks
from raycl.spec import RunSpec, parse
from raycl.state.environment import describe_environment
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task


@dataclass(frozen=True)
class SequenceJob:
    """Everything a sequence needs but a place to run. Holds no tensor; `SentJob` is its form for another process."""

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


@dataclass(frozen=True)
class SentJob:
    """A job on its way to another process, which may have to look in some folders before it can import the method."""

    folders: list[str]
    spec: Json
    plan: Plan
    tasks: list[Task]
    store: Store
    environment: dict[str, Any]

    @staticmethod
    def of(job: SequenceJob) -> SentJob:
        """What to send."""
        spec = job.spec.model_dump(mode="json")
        return SentJob(folders([job.spec.method.name]), spec, job.plan, job.tasks, job.store, job.environment)

    def open(self) -> SequenceJob:
        """The job, in the process that runs it. Raises UserError if that lacks the method, or has another source of it."""
        reach(self.folders)
        try:
            spec = parse(self.spec, method_params)
        except SpecError as error:
            raise SetupError(
                f"a worker process on {socket.gethostname()} cannot use this run's settings: {error}\nA method from "
                f"outside of raycl must lie in one of {self.folders} on every machine of the cluster, or be installed there"
            ) from None
        self._require_source(spec)
        return SequenceJob(spec, self.plan, self.tasks, self.store, self.environment)

    def _require_source(self, spec: RunSpec) -> None:
        """The stages were named after the source of an outside method: another one must not train them."""
        found = outside_method(spec.method.name)
        named = self.plan.stages[0].recipe["method"].get("source")
        if found and found.source != named:
            raise SetupError(
                f"method {spec.method.name}: its source in {found.folder} on {socket.gethostname()} is not the one that "
                "this run began with; start the run again, and where machines have copies of their own, make them the same"
            )


def make_job(spec: RunSpec, store: Store, tasks: list[Task] | None = None) -> SequenceJob:
    """Load the tasks (unless they are given), name every stage and cell. Nothing is trained.

    Raises UserError for data or a model that cannot be read.
    """
    tasks = load_tasks(spec.tasks, spec.data) if tasks is None else tasks
    model = known_fingerprint(spec.model)  # pyright: ignore[reportArgumentType]  # a frozen model has a hash
    plan = make_plan(spec, tasks, model)
    require_imports(spec, plan, store)
    return SequenceJob(spec, plan, tasks, store, known_environment())


@lru_cache(maxsize=8)
def known_fingerprint(model: ModelSpec) -> str:
    """The model's fingerprint, computed once in a process."""
    return fingerprint(model)


@lru_cache(maxsize=1)
def known_environment() -> dict[str, Any]:
    """The environment's description, made once in a process: it asks git."""
    return describe_environment()
