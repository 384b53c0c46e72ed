"""Calls to a service that may be away: they wait in order beside the caller's work, and what is refused is dropped."""

from __future__ import annotations

import threading

import pytest

from raycl.tracking import outbox
from raycl.tracking.outbox import ClosedOutbox, Outbox


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is given up after a moment."""
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "HURRIED_PAUSE_SECONDS", 0.01)


class Service:
    """Answers when it is up."""

    def __init__(self) -> None:
        self.up, self.tried = False, threading.Event()
        self.made: list[int] = []

    def call(self, number: int) -> None:
        """Take one call."""
        self.tried.set()
        if not self.up:
            raise ConnectionError("refused\nwith a long explanation")
        self.made.append(number)


def test_outbox_keeps_order_through_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    box, service = Outbox("service", lambda error: isinstance(error, ConnectionError)), Service()
    for number in range(3):
        box.send(f"call {number}", lambda number=number: service.call(number))
    assert not box.wait()
    assert (service.made, box.undelivered) == ([], 3)
    assert "call 0 waits (ConnectionError: refused)" in caplog.text
    service.up = True
    box.send("call 3", lambda: service.call(3))
    while not box.wait():
        pass
    assert service.made == [0, 1, 2, 3]
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "service: no answer",
        "service: answers again",
    ]


def test_an_outage_that_lasts_is_one_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if nobody waits."""
    monkeypatch.setattr(outbox, "SHORT_OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr(outbox, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_SECONDS", 0.01)
    tries = threading.Semaphore(0)
    box = Outbox("service", lambda error: True)
    box.send("a call", lambda: tries.release() or 1 / 0)
    for _ in range(4):
        assert tries.acquire(timeout=60)
    assert len(caplog.records) == 1


def test_an_outbox_that_answers_again_makes_all_calls_in_order(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once."""
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 60.0)
    box, service = Outbox("service", lambda error: isinstance(error, ConnectionError)), Service()
    for number in range(3):
        box.send(f"call {number}", lambda number=number: service.call(number))
    assert service.tried.wait(60)
    service.up = True
    assert box.wait()
    assert (service.made, box.undelivered) == ([0, 1, 2], 0)
    assert caplog.records == [], "a moment without an answer is not worth a word"


def test_an_outage_takes_its_patience_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits later in the same outage waits no more. The caller's clock goes on by half a second at each look."""
    now, main = [0.0], threading.current_thread()

    def clock() -> float:
        now[0] += 0.5 if threading.current_thread() is main else 0.0
        return now[0]

    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 5.0)
    monkeypatch.setattr(outbox.time, "monotonic", clock)
    box = Outbox("service", lambda error: True)
    box.send("a call", lambda: 1 / 0)
    assert not box.wait()
    first = now[0]
    assert first >= 5.0
    assert not box.wait()
    assert now[0] - first < 5.0


def test_a_call_under_way_is_waited_for_as_long_as_its_service_may_be_silent() -> None:
    begun, end = threading.Event(), threading.Event()
    box = Outbox("service", lambda error: True, silence=0.1)
    box.send("a call", lambda: begun.set() or end.wait(60))
    assert begun.wait(60)
    assert not box.wait()
    end.set()
    patient = Outbox("service", lambda error: True, silence=60.0)
    patient.send("a call", lambda: threading.Event().wait(0.4))
    assert patient.wait()


def test_the_caller_goes_on_while_a_call_is_made() -> None:
    """`send` comes back before the call does."""
    end = threading.Event()
    box = Outbox("service", lambda error: False)
    box.send("a call", lambda: end.wait(60))
    assert box.undelivered == 1
    end.set()
    assert box.wait()


def test_outbox_drops_what_is_refused_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    box = Outbox("service", lambda error: False)
    made: list[str] = []
    box.send("a bad call", lambda: 1 / 0)
    box.send("a good call", lambda: made.append("good"))
    assert box.wait()
    assert made == ["good"]
    assert "service: a bad call could not be recorded (ZeroDivisionError: division by zero)" in caplog.text


def test_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is counted as undelivered for good."""
    monkeypatch.setattr(outbox, "MAX_QUEUED_CALLS", 2)
    box = Outbox("service", lambda error: True)
    for _ in range(5):
        box.send("a call", lambda: 1 / 0)
    assert not box.wait()
    assert box.undelivered == 5


def test_a_closed_outbox_makes_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """`--tracking off`: nothing is made, nothing waits, nothing is said."""
    box, made = ClosedOutbox("service", lambda error: True), []
    box.send("call", lambda: made.append(1))
    assert box.wait()
    assert (made, box.undelivered, caplog.records) == ([], 0, [])
