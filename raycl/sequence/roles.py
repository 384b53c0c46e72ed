"""What a group of workers does of a sequence that several groups share: all of it, or training or scoring alone.

The store is what they share: a stage or a score is there or not, and nothing is handed from group to group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

from raycl.sequence.plan import StagePlan
from raycl.sequence.worker import SequenceWorker

Role = Literal["all", "ahead", "trains", "scores"]
"""All that is missing; stages that nobody else makes; all stages, while others score; the scores, while others train."""
StageDone = Callable[[StagePlan], None]
"""Called on every rank after each stage that was worked on."""
Look = Callable[[], object]
"""Called again and again by who waits for others; raises once they are gone."""
LOOK_SECONDS = 0.5
"""Between two looks for a stage that others train."""


def play(role: Role, worker: SequenceWorker, done: StageDone, look: Look) -> None:
    """Do a group's part of the sequence to its end."""
    parts: Mapping[Role, Callable[[], None]] = {
        "all": lambda: worker.run(done),
        "ahead": lambda: train_ahead(worker),
        "trains": lambda: train_only(worker, done),
        "scores": lambda: score_behind(worker, look),
    }
    parts[role]()


def train_ahead(worker: SequenceWorker) -> None:
    """Train the stages that nobody else makes, of a sequence whose stages depend on no other; whoever runs the sequence
    beside this worker waits for them and scores. The last one first: the other begins with the first."""
    for stage in reversed(worker.job.plan.stages):
        worker.make_if_free(stage)


def train_only(worker: SequenceWorker, done: StageDone) -> None:
    """Train what the store lacks and leave the scores to others; where what they found ends a run, it ends this one too."""
    stages = worker.job.plan.stages
    for place, stage in enumerate(stages, start=1):
        if worker.make(stage):
            done(stage)
        for earlier in stages[:place]:
            worker.require_sound_answers(earlier)


def score_behind(worker: SequenceWorker, look: Look) -> None:
    """Score every row as soon as its stage is there, which others train; the untrained model's row first."""
    worker.score(0)
    for stage in worker.job.plan.stages:
        while not worker.workers.agreed(worker.store.has(stage.key)):
            look()
            worker.workers.beat()
            time.sleep(LOOK_SECONDS)
        worker.settle(stage)
