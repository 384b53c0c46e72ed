"""Named points of a sequence at which a process can be made to end at once, as by a loss of power."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """Before or after a call of a function of raycl's."""

    where: str
    """`module:Class.function`, or `module:function`."""
    call: int = 1
    """Which call, 1 = the first."""
    after: bool = False
    """Once the call is done; else before it begins."""
    name: str = ""
    """Of a file: only calls count whose first argument ends so."""


WORKER, STAGE, STORE = "raycl.sequence.worker:SequenceWorker", "raycl.train.stage:StageRun", "raycl.state.store:Store"
FILES, LOOP = "raycl.state.files:Files", "raycl.train.loop:TrainLoop"
POINTS = {
    "before the plan": Point("raycl.sequence.driver:run_job"),
    "before the store is made": Point(f"{STORE}.check_usable"),
    "after the store is made": Point(f"{STORE}.check_usable", after=True),
    "before the model is loaded": Point(f"{WORKER}.start_up"),
    "before the second stage's lease": Point(f"{STORE}.lease", 2),
    "as the second stage begins": Point(f"{STAGE}.run", 2),
    "before the first step": Point(f"{LOOP}.train_step"),
    "in the middle of the second stage": Point(f"{LOOP}.train_step", 7),
    "after the last step of the first stage": Point(f"{STAGE}.train", after=True),
    "after a checkpoint": Point(f"{STORE}.write_partial", 2, after=True),
    "in the middle of a checkpoint": Point(f"{FILES}.write", 2, name="partial.json"),
    "after a stage, before it is published": Point(f"{STAGE}.run", after=True),
    "in the middle of its files": Point(f"{FILES}.write", name="adapter_model.safetensors"),
    "after its files, before the manifest": Point(f"{FILES}.create", name="manifest.json"),
    "after the manifest": Point(f"{FILES}.create", after=True, name="manifest.json"),
    "after publishing, before its checkpoint is dropped": Point(f"{STORE}.drop_partial"),
    "before the first scores": Point(f"{WORKER}.score"),
    "in the middle of a row of scores": Point(f"{STORE}.write_scores", 2),
    "after the last scores of the first row": Point(f"{WORKER}.score", after=True),
    "before the end is told": Point("raycl.sequence.chronicle:Chronicle.end"),
    "after the end is told": Point("raycl.sequence.chronicle:Chronicle.end", after=True),
}
"""What may be interrupted, in the order in which a sequence comes to it."""


def end_at(point: Point, code: int = 9) -> None:
    """Let this process end at a point, with no clean-up of any kind."""
    module, _, path = point.where.partition(":")
    *above, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in above:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), [0]

    def watched(*arguments: Any, **options: Any) -> Any:
        counts = not point.name or str(arguments[1]).endswith(point.name)
        calls[0] += counts
        mine = counts and calls[0] == point.call
        if mine and not point.after:
            os._exit(code)
        found = real(*arguments, **options)
        if mine:
            os._exit(code)
        return found

    setattr(owner, name, watched)
