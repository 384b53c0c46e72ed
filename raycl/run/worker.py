"""What every worker of a sequence runs: all missing stages and scores, one after another, in one warm process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor

from raycl.adapters.branches import adapter_config
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_class
from raycl.models import LoadedModel, load_model
from raycl.run.plan import Cell, Plan, StagePlan, stage_tasks
from raycl.spec import ModelSpec, RunSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.state.store import Store
from raycl.tasks.task import Task
from raycl.train.batches import Encoder
from raycl.train.generation import score_task
from raycl.train.stage import StageRun
from raycl.train.workers import Workers

LEASE_SECONDS = 60.0
"""How long a worker waits for another run before all workers look up again."""
Event = dict[str, Any]
StageDone = Callable[[StagePlan], None]


@dataclass
class SequenceWorker:
    """One worker's view of a sequence. Rank 0 publishes and reports; all ranks read states from the store."""

    spec: RunSpec
    plan: Plan
    tasks: list[Task]
    store: Store
    workers: Workers
    report: Callable[[Event], None]
    environment: dict[str, Any]
    load: Callable[[ModelSpec, str], LoadedModel] = load_model
    """Gets the base model; a host that runs many sequences in one process keeps it."""
    trained: bool = False
    """Whether the last stage that `advance` saw was trained here, not found or waited for."""

    def run(self, stage_done: StageDone) -> None:
        """Do what the store lacks. `stage_done` is called on every rank after each stage that was worked on."""
        self.score_untrained()
        for stage in self.plan.stages:
            if self.advance(stage):
                stage_done(stage)

    def score_untrained(self) -> None:
        """Score the untrained model, where the plan wants it."""
        self._score(0)

    def advance(self, stage: StagePlan) -> bool:
        """Train and score one stage, as far as the store lacks it; whether anything was to do."""
        self.trained = self._obtain(stage)
        missing = self._missing(stage.row)
        if missing:
            self._score(stage.row)
        return self.trained or bool(missing)

    def _obtain(self, stage: StagePlan) -> bool:
        """Make sure that a stage is stored: train it, or wait for another run that trains it now. Whether it was trained."""
        if self._agreed(self.store.has(stage.key)):
            return False
        lease = self.store.lease(stage.key)
        # All workers look up together now and then, so that none waits in one exchange longer than its time limit.
        while not self._agreed(self.workers.rank != 0 or lease.acquire(LEASE_SECONDS)):
            self.report(
                {"event": "phase", "stage": stage.stage, "phase": "waiting for another run", "done": 0, "total": 1}
            )
        try:
            if self._agreed(self.store.has(stage.key)):
                return False
            self._train(stage)
            return True
        finally:
            lease.release()

    @cached_property
    def model(self) -> LoadedModel:
        """The base model, loaded once for all stages."""
        return self.load(self.spec.model, self.workers.device)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokeniser with the run's length limits."""
        data = self.spec.data
        return Encoder(
            self.model.tokenizer, self.model.backbone.encoder_decoder, data.max_source_tokens, data.max_target_tokens
        )

    def _state(self, key: str | None) -> StageState:
        """A stored state, with the newest one kept in memory so that the next stage need not read its parents again."""
        known: tuple[str | None, StageState] = getattr(self, "_known", (None, StageState()))
        if known[0] != key:
            method = method_class(self.spec.method.name)
            last_only = method.carries(self.spec.method) == "last"
            if key is None:
                known = (None, StageState())
            elif self.store.manifest(key).parent == known[0]:
                known = (key, known[1].append(self.store.read(key), last_only))
            else:
                known = (key, self.store.read_state(key, last_only))
            self._known = known
        return known[1]

    @cached_property
    def stage_tasks(self) -> list[Task]:
        """What each stage trains on."""
        return stage_tasks(self.spec, self.tasks)

    def _info(self, stage: int) -> StageInfo:
        return StageInfo(stage, len(self.stage_tasks), self.stage_tasks[stage - 1].name, self.spec.seed)

    def _train(self, stage: StagePlan) -> None:
        """Run one stage and publish it."""
        state = self._state(stage.parent)
        partial = StagePartial(self.store, stage.key) if self.spec.train.checkpoint_every else None
        run = StageRun(
            self.model,
            build(self.spec.method, self._info(stage.stage)),
            state,
            self.stage_tasks[stage.stage - 1],
            self.spec,
            self.encoder,
            self.workers,
            self.report,
            partial,
        )
        part = run.run()
        if self.workers.rank == 0:
            self._publish(stage, run, part)
        self.workers.barrier()

    def _publish(self, stage: StagePlan, run: StageRun, part: StagePart) -> None:
        end = {
            "event": "stage_end",
            "stage": stage.stage,
            "task": stage.task,
            "key": stage.key,
            "cached": False,
            "seconds": run.seconds,
            "gauges": run.method.measures(),
        }
        adapter = None
        if part.branch is not None:
            adapter = adapter_config(self.model.backbone, part.branch, self.model.name)
        self.store.publish(
            stage.key,
            part,
            recipe=stage.recipe,
            parent=stage.parent,
            stage=stage.stage,
            adapter_config=adapter,
            environment=self.environment,
            runtime={
                "workers": self.workers.world,
                "device": self.workers.device,
                "process": os.getpid(),
                "seconds": run.seconds,
                "trainable_parameters": run.trainable,
            },
            log=[*run.log, end],
        )
        self.store.drop_partial(stage.key)
        self.report(end)

    def _missing(self, row: int) -> list[Cell]:
        return self._agreed([cell for cell in self.plan.cells_of(row) if not self.store.has_scores(cell.key)])

    def _agreed(self, seen: Any) -> Any:
        """What rank 0 sees in the store: another run may write while the workers look one after the other."""
        return self.workers.gather(seen)[0]

    def _score(self, row: int) -> None:
        """Score the missing cells of one row, state by state: one, unless the task id is at hand."""
        cells = self._missing(row)
        done = 0
        for state, group in groupby(cells, key=lambda cell: cell.state):
            with self._served(state) as method:
                for cell in group:
                    phase = {"event": "phase", "stage": row, "phase": "evaluation"}
                    self.report(phase | {"done": done, "total": len(cells)})
                    self._score_cell(cell, method)
                    done += 1
        if cells:
            self.workers.barrier()

    @contextmanager
    def _served(self, key: str | None) -> Iterator[Method | None]:
        """A published state on the backbone, or the untrained model."""
        if key is None:
            yield None
            return
        method = build(self.spec.method, self._info(self.store.manifest(key).stage))
        try:
            method.serve(self.model.backbone, self._state(key))
            yield method
        finally:
            method.remove()

    def _score_cell(self, cell: Cell, method: Method | None) -> None:
        started = time.perf_counter()
        task = next(task for task in self.tasks if task.name == cell.task)
        scored = score_task(self.model, method, self.encoder, task, self.spec.eval.batch_size, self.workers)
        if self.workers.rank != 0:
            return
        record = {
            "task": cell.task,
            "metric": task.metric,
            "score": scored.score,
            "examples": len(task.test),
            "seconds": time.perf_counter() - started,
        }
        self.store.write_scores(cell.key, record, scored.predictions)
        self.report({"event": "scores", "stage": cell.stage, "seen": cell.seen} | record)


@dataclass(frozen=True)
class StagePartial:
    """Mid-stage checkpoints of one stage, in the store."""

    store: Store
    key: str

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint of this stage, or none."""
        return self.store.read_partial(self.key)

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the last checkpoint."""
        self.store.write_partial(self.key, tensors, facts)
