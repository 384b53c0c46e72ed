"""Calls to a service that may be away: they wait in order, and what is refused is dropped with a word."""

from __future__ import annotations

import pytest

from raycl.tracking import outbox
from raycl.tracking.outbox import Outbox


def test_outbox_keeps_order_through_an_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_SECONDS", 1000.0)
    box = Outbox("service", lambda error: isinstance(error, ConnectionError))
    made: list[int] = []
    tries: list[int] = []
    up = False

    def call(number: int) -> None:
        tries.append(number)
        if not up:
            raise ConnectionError("refused\nwith a long explanation")
        made.append(number)

    for number in range(3):
        box.send(f"call {number}", lambda number=number: call(number))
    assert (made, tries, box.undelivered) == ([], [0] * outbox.ATTEMPTS, 3)
    assert "call 0 waits (ConnectionError: refused)" in caplog.text
    up = True
    box.flush()
    assert made == [], "the pause is not over"
    box.flush(now=True)
    assert (made, box.undelivered) == ([0, 1, 2], 0)
    assert len(caplog.records) == 2


def test_outbox_drops_what_is_refused_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    box = Outbox("service", lambda error: False)
    made: list[str] = []
    box.send("a bad call", lambda: 1 / 0)
    box.send("a good call", lambda: made.append("good"))
    assert made == ["good"]
    assert "service: a bad call could not be recorded (ZeroDivisionError: division by zero)" in caplog.text


def test_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_QUEUED_CALLS", 2)
    monkeypatch.setattr(outbox, "ATTEMPTS", 1)
    box = Outbox("service", lambda error: True)
    for _ in range(5):
        box.send("a call", lambda: 1 / 0)
    assert (box.waiting, box.undelivered) == (2, 5)
