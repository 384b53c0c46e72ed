"""Whose turn it is to make a stage: of all that need it one makes it, and the others wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raycl.events import Phase, StageEvent
from raycl.sequence.plan import StagePlan
from raycl.state.lease import Lease
from raycl.state.store import Store
from raycl.train.workers import Workers

FIRST_LOOK_SECONDS = 2.0
"""How long a stage that another run makes is waited for before that is said."""
LEASE_SECONDS = 60.0
"""How long a worker waits for another run before all workers look up again."""


@contextmanager
def turn(
    store: Store, workers: Workers, stage: StagePlan, report: Callable[[StageEvent], None], wait: bool = True
) -> Iterator[Lease | None]:
    """The right to make a stage, if these workers must: not where it is stored, also not after waiting for another run's.

    Rank 0 holds it for all. Without `wait`, what another run makes is left to it.
    """
    if workers.agreed(store.has(stage.key)):
        yield None
        return
    lease = store.lease(stage.key)
    # All workers look up together now and then, so that none waits in one exchange longer than its time limit.
    patience = FIRST_LOOK_SECONDS if wait else 0.0
    while not workers.agreed(workers.rank != 0 or lease.acquire(patience)):
        if not wait:
            yield None
            return
        patience = LEASE_SECONDS
        report(Phase(stage.stage, "waiting for another run", 0, 1))
    try:
        yield None if workers.agreed(store.has(stage.key)) else lease
    finally:
        lease.release()
