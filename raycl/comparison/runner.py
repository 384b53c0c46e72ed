"""Runs cells of a comparison one after another in one process, stage by stage, with the base model kept. Knows no Ray."""

from __future__ import annotations

import gc
import os
import socket
import traceback
from dataclasses import dataclass

import torch

from raycl.errors import UserError
from raycl.sequence.job import SentJob
from raycl.sequence.local import Stepper, StepResult, keep_model, worker_here
from raycl.sequence.preflight import check_workers
from raycl.train.workers import local_device


@dataclass(frozen=True)
class CellJob:
    """A sequence of the grid to run, as it is sent to a process."""

    number: int
    """Its place in the grid."""
    job: SentJob


@dataclass(frozen=True)
class CellStep:
    """A stage of a sequence is done."""

    number: int
    step: StepResult
    finished: bool
    """Whether it was the last stage."""


@dataclass(frozen=True)
class CellFailed:
    """A sequence cannot go on."""

    number: int
    error: str
    trace: str | None = None
    """Where, for an error that is no user's."""


@dataclass(frozen=True)
class PoolWaiting:
    """Nothing happens for want of room."""

    message: str


CellEvent = CellStep | CellFailed | PoolWaiting


class CellRunner:
    """One process's part of a comparison."""

    def __init__(self, threads: int) -> None:
        """`threads` are the CPU threads of this process."""
        self._threads = threads
        self._number: int | None = None
        self._stepper: Stepper | None = None

    def where(self) -> str:
        """Host and process, for messages; answers once the process is up."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def advance(self, cell: CellJob) -> CellStep | CellFailed:
        """Do the sequence's next stage, its first if it is new here. Any error is returned: one must not cost the others."""
        try:
            if self._stepper is None or self._number != cell.number:
                self._stepper = self.open(cell)
            step = self._stepper.step()
            return CellStep(cell.number, step, self._stepper.finished)
        except UserError as error:
            self._drop()
            return CellFailed(cell.number, str(error))
        except Exception as error:
            self._drop()
            return CellFailed(cell.number, f"{type(error).__name__}: {error}".strip(), traceback.format_exc())

    def open(self, cell: CellJob) -> Stepper:
        """Prepare a sequence from its first stage; what is in the store is found there."""
        job = cell.job.open()
        check_workers(job.spec, 1)
        job.store.check_usable()
        self._number = cell.number
        return Stepper(job, worker_here(job, self._threads, local_device()))

    def _drop(self) -> None:
        """Forget the sequence and the base model: after an error nobody knows what state it is in."""
        self._stepper = self._number = None
        keep_model.cache_clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
