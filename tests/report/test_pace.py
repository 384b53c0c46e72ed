"""The guess of what is left: from the stages so far, on a clock of its own."""

from __future__ import annotations

import pytest

from raycl.report.pace import Pace


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(10.0, "30 s"), (60.0, "3.0 min"), (1200.0, "60 min"), (3600.0, "3.0 h")],
)
def test_what_is_left_takes_as_long_as_what_was_done(seconds: float, words: str) -> None:
    """One of four stages took so long; three are left."""
    clock = Clock()
    pace = Pace(4, clock)
    assert pace.words == ""
    pace.begin(1)
    clock.now += seconds
    assert pace.stage_done(1)
    assert (pace.done, pace.left, pace.words) == (1, 3, f", about {words} left")


def test_a_running_stage_counts_by_its_steps() -> None:
    """A quarter of the second of two stages after 100 s: 1.25 stages are done, 0.75 take 60 s."""
    clock = Clock()
    pace = Pace(2, clock)
    pace.begin(1)
    pace.stage_done(1)
    pace.begin(2)
    pace.within(2, 0.25)
    clock.now += 100
    assert pace.words == ", about 60 s left"


def test_too_little_is_no_ground_for_a_guess_and_the_end_needs_none() -> None:
    clock = Clock()
    pace = Pace(1, clock)
    pace.begin(1)
    pace.within(1, 0.04)
    clock.now += 10
    assert pace.words == ""
    pace.stage_done(1)
    assert (pace.left, pace.words) == (0, "")
    assert not pace.stage_done(1), "a row of a stored stage is none of its stages"
    assert pace.done == 1


def test_a_stage_that_starts_again_is_one_stage() -> None:
    """After a retry its steps count anew."""
    pace = Pace(2, Clock())
    pace.begin(1)
    pace.within(1, 0.9)
    pace.begin(1)
    assert pace.words == ""
    pace.stage_done(1)
    assert pace.done == 1


def test_stages_that_run_side_by_side_add_up() -> None:
    """Half of two stages and the whole of a third after 80 s, of four: two are done, two take as long."""
    clock = Clock()
    pace = Pace(4, clock)
    for stage in (1, 2, 3):
        pace.begin(stage)
    for stage in (2, 3):
        pace.within(stage, 0.5)
    pace.stage_done(1)
    clock.now += 80
    assert (pace.done, pace.left, pace.words) == (1, 3, ", about 80 s left")
