"""The pool of a comparison, with Ray replaced by a stand-in: who gets which job, what a death costs, when it gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from raycl.comparison import pool
from raycl.comparison.runner import CellEvent, CellFailed, CellJob, CellStep, PoolWaiting
from raycl.errors import SetupError
from raycl.sequence.local import StepResult

STAGES = 2


class FakeRay:
    """Stands in for Ray: a call is done when it is asked for, the oldest first."""

    def __init__(self) -> None:
        self.killed: list[Any] = []
        self.placed = True

    def wait(self, calls: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        """The oldest call, or none while there is no room on the cluster."""
        if not self.placed:
            self.placed = True
            return [], list(calls)
        return [calls[0]], list(calls[1:])

    def get(self, call: Callable[[], Any]) -> Any:
        """Do the call."""
        return call()

    def put(self, value: Any) -> Any:
        """No other place."""
        return value

    def kill(self, actor: Any) -> None:
        """Note it."""
        self.killed.append(actor)


class FakeProcess:
    """A process that does `STAGES` stages a job; `dies_at` are (job, stage); stage 0 = its start."""

    def __init__(self, dies_at: set[tuple[int, int]], number: int) -> None:
        self.dies_at, self.number, self.done = dies_at, number, {}

    @property
    def where(self) -> Any:
        """Its first answer."""
        return Remote(lambda: self._live(-1, 0) or "here")

    @property
    def advance(self) -> Any:
        """Its work."""
        return Remote(self._advance)

    def _live(self, job: int, stage: int) -> None:
        if (job, stage) in self.dies_at:
            raise ActorDiedError()

    def _advance(self, job: CellJob) -> CellStep | CellFailed:
        stage = self.done[job.number] = self.done.get(job.number, 0) + 1
        self._live(job.number, stage)
        if job.job == "bad":
            return CellFailed(job.number, "bad")
        # The task's name says who did it.
        return CellStep(job.number, StepResult(stage, f"by {self.number}", "", True, {}), stage == STAGES)


class Remote:
    """A method that can be called from afar."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        """A call that is done later."""
        return lambda: self.function(*arguments)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Ray's stand-in, in place."""
    ray = FakeRay()
    monkeypatch.setattr(pool, "ray", ray)
    return ray


def run(
    jobs: int, processes: int, dies_at: set[tuple[int, int]] | None = None, bad: int | None = None
) -> tuple[list[CellEvent], list[FakeProcess]]:
    """Run a pool; the events, and the processes that were started."""
    started: list[FakeProcess] = []
    events: list[CellEvent] = []

    def start() -> Any:
        started.append(FakeProcess(dies_at or set(), len(started)))
        return started[-1]

    all_jobs = [CellJob(n, "bad" if n == bad else "good") for n in range(jobs)]
    one = pool.Pool(start, all_jobs, events.append)
    try:
        one.run(processes)
    finally:
        one.close()
    return events, started


def ended(events: list[CellEvent]) -> dict[int, str]:
    """How each cell ended."""
    steps = {one.number: "done" for one in events if isinstance(one, CellStep) and one.finished}
    return dict(sorted((steps | {one.number: "failed" for one in events if isinstance(one, CellFailed)}).items()))


def test_all_jobs_end_and_all_processes_too(fake: FakeRay) -> None:
    """A job stays with its process; both processes work; none is left alive."""
    events, started = run(5, 2)
    assert ended(events) == dict.fromkeys(range(5), "done")
    assert len(events) == 5 * STAGES
    by = {n: {one.step.task for one in events if one.number == n} for n in range(5)}
    assert all(len(processes) == 1 for processes in by.values())
    assert len(started) == 2
    assert set(fake.killed) == set(started)


def test_a_bad_cell_costs_neither_process_nor_others(fake: FakeRay) -> None:
    """Its process takes the next job."""
    events, started = run(3, 1, bad=1)
    assert ended(events) == {0: "done", 1: "failed", 2: "done"}
    assert len(started) == 1


def test_a_death_fails_one_cell_and_is_replaced(fake: FakeRay) -> None:
    """In the middle of cell 1; the last cell's death needs no replacement."""
    events, started = run(4, 1, {(1, 2), (3, 1)})
    assert ended(events) == {0: "done", 1: "failed", 2: "done", 3: "failed"}
    assert len(started) == 2
    (failure,) = [one for one in events if isinstance(one, CellFailed) and one.number == 1]
    assert "its process died" in failure.error
    assert "--max-concurrent" in failure.error


def test_processes_that_never_start_end_the_run(fake: FakeRay) -> None:
    """After a few of them, with the next step."""
    with pytest.raises(SetupError, match="--workers 0"):
        run(2, 1, {(-1, 0)})


def test_waiting_for_room_is_said(fake: FakeRay) -> None:
    """A cluster that others fill: a line, then it goes on."""
    fake.placed = False
    events, _ = run(1, 1)
    assert events[0] == PoolWaiting("1 processes wait for room on the cluster")
    assert ended(events) == {0: "done"}
