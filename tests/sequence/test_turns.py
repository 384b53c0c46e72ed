"""Who makes a stage: one that stood still while another took over leaves it to that one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from raycl.events import Phase, StageEvent, Step
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.resolve import resolve
from raycl.sequence.worker import SequenceWorker
from raycl.state.store import Store
from raycl.train.workers import Workers
from tests.kit.runs import MakeFlags, digests


def job_in(folder: Path, flags: MakeFlags) -> SequenceJob:
    """One stage of four steps, with a checkpoint after the second."""
    fields: dict[str, Any] = flags.spec("sin_lora", "llama")
    fields["train"] |= {"checkpoint_every": 2}
    return make_job(resolve("laptop", [fields | {"order": "roget"}]), Store(str(folder)))


class Successor:
    """Another run as it meets a process that was stopped at its first step: it takes the right and, when the
    first one has left, makes the stage from the bytes of `made` and gives the right back."""

    def __init__(self, store: Path, made: Path, key: str) -> None:
        self.store, self.made, self.key = store, made, key
        self.right = Store(str(store)).lease(key)
        self.said: list[str] = []
        self.found: list[bool] = []

    def report(self, event: StageEvent) -> None:
        """Take over at the first step; publish once the other has left."""
        if isinstance(event, Step) and event.step == 1:
            os.unlink(self.store / "leases" / f"{self.key}.lock")
            assert self.right.acquire(0)
        if isinstance(event, Phase) and "another run" in event.phase:
            self.said.append(event.phase)
            store = Store(str(self.store))
            self.found += [store.has(self.key), store.read_partial(self.key) is not None]
            shutil.copytree(self.made / "stages", self.store / "stages", dirs_exist_ok=True)
            self.right.release()


def test_a_run_that_lost_its_right_publishes_nothing(tmp_path: Path, flags: MakeFlags) -> None:
    """Neither the stage nor a checkpoint; it takes what the other has made, and scores it."""
    made = job_in(tmp_path / "made", flags)
    SequenceWorker(made, Workers(), lambda event: None).run()
    (stage,) = made.plan.stages

    job = job_in(tmp_path / "store", flags)
    successor = Successor(tmp_path / "store", tmp_path / "made", stage.key)
    worker = SequenceWorker(job, Workers(), successor.report)
    assert worker.advance(stage) and not worker.trained
    assert successor.said == ["left to another run, which took over while this one stood still"]
    assert successor.found == [False, False]
    assert digests(tmp_path / "store") == digests(tmp_path / "made")
    assert all(job.store.has_scores(cell.key) for cell in job.plan.cells_of(1))
