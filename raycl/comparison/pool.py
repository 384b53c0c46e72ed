"""Ray, and only here for comparisons: a pool of processes that run cells, as many as the cluster has room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from raycl.cluster import nodes, share_out, start_cluster
from raycl.comparison.runner import CellEvent, CellFailed, CellJob, CellRunner, CellStep, PoolWaiting
from raycl.errors import SetupError, first_line

Handle = Callable[[CellEvent], object]
MAX_DEAD_STARTS = 3
"""Processes that may die before their first answer until the pool gives up."""
WAITING_NOTE_SECONDS = 60.0
"""Seconds without news until the pool says what it waits for."""


def run_on_ray(jobs: Sequence[CellJob], most: int | None, handle: Handle) -> None:
    """Run the jobs on the cluster at hand, or on one started here, and hand every event to `handle` in this process.

    `most` bounds the number of processes. Raises SetupError if processes die before they can do anything.
    """
    start_cluster()
    share = share_out(nodes(), len(jobs), most)
    actor = ray.remote(CellRunner).options(num_cpus=share.cpus, num_gpus=share.gpus)
    # Ray types the handle of an actor also as the actor's class, so that its methods can be completed.
    pool = Pool(lambda: cast(ActorHandle, actor.remote(share.cpus)), jobs, handle)
    try:
        pool.run(share.processes)
    finally:
        pool.close()


class Pool:
    """Gives jobs to processes that are up, stage by stage; a process that dies fails its job and is replaced."""

    def __init__(self, start: Callable[[], ActorHandle], jobs: Sequence[CellJob], handle: Handle) -> None:
        self._start, self._handle = start, handle
        self.left = deque(jobs)
        self.calls: dict[Any, tuple[ActorHandle, CellJob | None, Any]] = {}
        """Call under way -> process, its job and the job's place in Ray's memory; no job = a process that starts."""
        self.dead_starts = 0

    def run(self, processes: int) -> None:
        """Until no job is left."""
        for _ in range(processes):
            self._hire()
        while self.left or any(job for _, job, _ in self.calls.values()):
            done, _ = ray.wait(list(self.calls), timeout=WAITING_NOTE_SECONDS)
            for call in done:
                self.answer(call)
            if not done and not any(job for _, job, _ in self.calls.values()):
                self._handle(PoolWaiting(f"{len(self.calls)} processes wait for room on the cluster"))

    def close(self) -> None:
        """End all processes; leases of stages they were making are free at once."""
        for actor, _, _ in self.calls.values():
            ray.kill(actor)
        self.calls.clear()

    def _hire(self) -> None:
        actor = self._start()
        self.calls[actor.where.remote()] = (actor, None, None)

    def answer(self, call: Any) -> None:
        """Take what a call returned, give the process its next work, and only then hand the event on."""
        actor, job, stored = self.calls.pop(call)
        try:
            event: CellStep | CellFailed = ray.get(call)
        except RayError as error:
            self._bury(actor, job, error)
            return
        if job is None or isinstance(event, CellFailed) or event.finished:
            self._give(actor)
        else:
            self.calls[actor.advance.remote(stored)] = (actor, job, stored)
        if job is not None:
            self._handle(event)

    def _give(self, actor: ActorHandle) -> None:
        """The next job for a process, or its end."""
        if not self.left:
            ray.kill(actor)
            return
        job = self.left.popleft()
        stored = ray.put(job)
        self.calls[actor.advance.remote(stored)] = (actor, job, stored)

    def _bury(self, actor: ActorHandle, job: CellJob | None, error: RayError) -> None:
        """Replace a process that is gone; its job has failed."""
        ray.kill(actor)
        reason = first_line(error)
        if job is None:
            self.dead_starts += 1
            if self.dead_starts >= MAX_DEAD_STARTS:
                raise SetupError(
                    f"processes of the comparison die as they start ({reason}); try --workers 0"
                ) from error
        if self.left:
            self._hire()
        if job is not None:
            text = (
                f"its process died ({reason}); too little memory is the usual cause (--max-concurrent lowers the number of "
                "processes). The same command again continues at its last finished stage"
            )
            self._handle(CellFailed(job.number, text, str(error)))
