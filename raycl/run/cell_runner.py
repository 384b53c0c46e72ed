"""Runs cells of a comparison one after another in one process, stage by stage, with the base model kept. Knows no Ray."""

from __future__ import annotations

import gc
import os
import socket
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from raycl.errors import UserError
from raycl.methods.registry import method_params
from raycl.run.plan import Plan
from raycl.run.preflight import check_workers
from raycl.run.stepper import Stepper, keep_model
from raycl.spec import Json, parse
from raycl.state.store import Store
from raycl.tasks.task import Task

Event = dict[str, Any]


@dataclass(frozen=True)
class CellJob:
    """A cell to run, as it is sent to a process."""

    number: int
    spec: Json
    plan: Json
    tasks: list[Task]


class CellRunner:
    """One process's part of a comparison."""

    def __init__(self, store: str, environment: Json, threads: int) -> None:
        """`store` is a folder or URI; `environment` is recorded in the manifests of the stages made here."""
        self._store, self._environment, self._threads = store, environment, threads
        self._number: int | None = None
        self._stepper: Stepper | None = None

    def where(self) -> str:
        """Host and process, for messages; answers once the process is up."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def advance(self, job: CellJob) -> Event:
        """Do the job's next stage, its first if it is new here.

        Returns what `Stepper.step` returns, and `cell` and `finished`; or, for any error, `cell`, `error` and `trace`
        (none for what a user can mend): one bad cell must not cost the others.
        """
        try:
            if self._stepper is None or self._number != job.number:
                self._open(job)
            event = self._stepper.step()
            return {"cell": job.number, "finished": self._stepper.finished} | event
        except UserError as error:
            self._drop()
            return {"cell": job.number, "error": str(error), "trace": None}
        except Exception as error:
            self._drop()
            text = f"{type(error).__name__}: {error}".strip()
            return {"cell": job.number, "error": text, "trace": traceback.format_exc()}

    def _open(self, job: CellJob) -> None:
        """Prepare a sequence from its first stage; what is in the store is found there."""
        spec = parse(job.spec, method_params)
        check_workers(spec, 1)
        store = Store(self._store)
        store.check_usable()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plan = Plan.from_json(job.plan)
        self._stepper = Stepper(spec, job.tasks, plan, store, self._environment, self._threads, device)
        self._number = job.number

    def _drop(self) -> None:
        """Forget the sequence and the base model: after an error nobody knows what state it is in."""
        self._stepper = self._number = None
        keep_model.cache_clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
