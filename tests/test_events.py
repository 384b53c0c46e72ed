"""Events: their JSON form is what manifests of older versions hold, and comes back as it was."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycl.events import (
    NAMES,
    Adapted,
    Event,
    Phase,
    Retry,
    Scored,
    StageEnd,
    StageEvent,
    StageStart,
    Step,
    Term,
    from_json,
    status_of,
    to_json,
    work_seconds,
)

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=5)
COUNT = st.integers(0, 10**6)
GAUGES = st.dictionaries(TEXT, NUMBER, max_size=3)
TERMS = st.dictionaries(TEXT, st.builds(Term, NUMBER, NUMBER, NUMBER), max_size=2)
EVENTS = st.one_of(
    st.builds(StageStart, COUNT, TEXT, COUNT),
    st.builds(Step, COUNT, COUNT, COUNT, NUMBER, NUMBER, NUMBER, TERMS, GAUGES),
    st.builds(Adapted, COUNT, st.dictionaries(TEXT, COUNT, max_size=3)),
    st.builds(Phase, COUNT, TEXT, COUNT, COUNT),
    st.builds(Retry, TEXT, COUNT, COUNT),
    st.builds(StageEnd, COUNT, TEXT, TEXT, st.booleans(), GAUGES, GAUGES),
    st.builds(Scored, COUNT, TEXT, TEXT, NUMBER, COUNT, NUMBER, st.booleans(), doubtful=st.none() | NUMBER),
)


@given(EVENTS)
def test_json_there_and_back(event: StageEvent) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


def test_the_form_that_manifests_hold() -> None:
    """Field by field, as version 0.1 wrote it."""
    step = Step(2, 3, 40, 1e-3, 0.5, 100.0, {"orthogonal": Term(2.0, 1.0, 2.0)}, {"gate": 0.25})
    assert to_json(step) == {
        "event": "step", "stage": 2, "step": 3, "steps": 40, "lr": 1e-3, "loss": 0.5, "tokens_per_s": 100.0,
        "terms": {"orthogonal": {"raw": 2.0, "weighted": 1.0, "ratio": 2.0}}, "gauges": {"gate": 0.25},
    }  # fmt: skip
    end = StageEnd(1, "agnews", "ab" * 32, False, {"train": 1.5}, {"gate": 0.25}, (step,))
    assert to_json(end) == {
        "event": "stage_end", "stage": 1, "task": "agnews", "key": "ab" * 32, "cached": False,
        "seconds": {"train": 1.5}, "gauges": {"gate": 0.25},
    }  # fmt: skip


def test_a_null_is_a_number_that_was_not_finite() -> None:
    """Manifests hold null for it."""
    values = to_json(Step(1, 1, 1, 0.1, 1.0, 1.0, {"t": Term(1, 1, 1)}, {"g": 1.0}))
    values |= {"gauges": {"g": None}, "terms": {"t": {"raw": None, "weighted": 1, "ratio": 1}}}
    step = from_json(values)
    assert isinstance(step, Step)
    assert math.isnan(step.gauges["g"]) and math.isnan(step.terms["t"].raw)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown event 'epoch'; known: stage_start"):
        from_json({"event": "epoch"})
    with pytest.raises(TypeError):
        from_json({"event": "stage_start", "stage": 1, "colour": "red"})


def test_every_event_is_frozen_and_every_reported_one_has_a_name() -> None:
    assert set(NAMES) == set(get_args(StageEvent))
    for kind in get_args(Event):
        assert is_dataclass(kind) and kind.__dataclass_params__.frozen and fields(kind)


def test_a_start_up_is_no_work_of_a_stage() -> None:
    """Kinds of work that an older version recorded count."""
    assert work_seconds({"train": 9.5, "pass": 1.0, "other": 0.25, "start_up": 288.0}) == 10.75


def test_who_interrupts_kills_and_all_else_fails() -> None:
    assert status_of(KeyboardInterrupt()) == "KILLED"
    assert [status_of(error) for error in (RuntimeError(), SystemExit(), ValueError())] == ["FAILED"] * 3
