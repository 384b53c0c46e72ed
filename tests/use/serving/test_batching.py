"""The queue before the model's thread: what goes together, what is refused, what is dropped, how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from raycl.use.serving.batching import Batcher, Full, Stopped
from tests.kit.serving import until


class Doubling:
    """Doubles numbers, once it is let go on; it fails at what is no number."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()
        self.groups: list[tuple[str, list[object]]] = []
        self.closed = False

    def open(self) -> None:
        """Nothing."""

    def answer(self, key: str, questions: Sequence[object]) -> list[object]:
        """Each twice."""
        self.groups.append((key, list(questions)))
        self.began.set()
        assert self.go.wait(60)
        if "bad" in questions:
            raise ValueError("bad")
        if "worst" in questions:
            raise SystemExit
        return [one * 2 for one in questions]  # type: ignore[operator]

    def close(self) -> None:
        """Notes it."""
        self.closed = True


@pytest.fixture
def work() -> Doubling:
    return Doubling()


@pytest.fixture
def batcher(work: Doubling) -> Iterator[Batcher[str, object, object]]:
    """Ready; up to three together, up to five waiting."""
    one: Batcher[str, object, object] = Batcher(work, 3, 5)
    one.start()
    until(lambda: one.ready)
    yield one
    work.go.set()
    one.stop()


def busy(batcher: Batcher[str, object, object], work: Doubling) -> Future[object]:
    """A question that is being answered, so that what comes after it waits."""
    (first,) = batcher.ask("a", [0])
    assert work.began.wait(60)
    return first


def test_what_waits_and_agrees_goes_together(batcher: Batcher[str, object, object], work: Doubling) -> None:
    """Oldest first, at most three, each key by itself; every answer finds its question."""
    first = busy(batcher, work)
    answers = [batcher.ask(key, [value])[0] for key, value in (("a", 1), ("b", 2), ("a", 3), ("a", 4), ("a", 5))]
    work.go.set()
    assert [one.result(60) for one in [first, *answers]] == [0, 2, 4, 6, 8, 10]
    assert work.groups == [("a", [0]), ("a", [1, 3, 4]), ("b", [2]), ("a", [5])]


def test_there_is_room_for_so_many(batcher: Batcher[str, object, object], work: Doubling) -> None:
    """All of a request or nothing; what nobody wants any more makes room, and is not worked for."""
    busy(batcher, work)
    waiting = batcher.ask("a", [1, 2, 3])
    with pytest.raises(Full):
        batcher.ask("a", [4, 5, 6])
    assert waiting[1].cancel()
    more = batcher.ask("a", [4, 5, 6])
    work.go.set()
    assert [one.result(60) for one in (waiting[0], waiting[2], *more)] == [2, 6, 8, 10, 12]
    assert [value for _, group in work.groups for value in group] == [0, 1, 3, 4, 5, 6]


def test_what_is_dropped_in_its_group_is_not_worked_for(batcher: Batcher[str, object, object], work: Doubling) -> None:
    """Cancelled with no request after it: it is left out when its turn comes."""
    busy(batcher, work)
    one, two = batcher.ask("a", [1, 2])
    assert one.cancel()
    work.go.set()
    assert two.result(60) == 4 and work.groups[-1] == ("a", [2])


def test_only_what_fails_is_left_without_an_answer(batcher: Batcher[str, object, object], work: Doubling) -> None:
    busy(batcher, work)
    good, bad, other = batcher.ask("a", [1, "bad", 2])
    work.go.set()
    assert (good.result(60), other.result(60)) == (2, 4)
    with pytest.raises(ValueError, match="bad"):
        bad.result(60)
    assert batcher.ready and batcher.ask("a", [3])[0].result(60) == 6


def test_at_its_end_what_has_come_in_is_answered(batcher: Batcher[str, object, object], work: Doubling) -> None:
    busy(batcher, work)
    waiting = batcher.ask("a", [1, 2])
    ending = threading.Thread(target=batcher.stop)
    ending.start()
    until(lambda: not batcher.ready)
    with pytest.raises(Stopped):
        batcher.ask("a", [3])
    work.go.set()
    ending.join(60)
    assert [one.result(0) for one in waiting] == [2, 4] and work.closed and batcher.fault is None


def test_a_broken_thread_leaves_nobody_waiting(batcher: Batcher[str, object, object], work: Doubling) -> None:
    busy(batcher, work)
    waiting = batcher.ask("a", ["worst", 1]) + batcher.ask("b", [2])
    assert batcher.waiting == 3
    work.go.set()
    for one in waiting:
        with pytest.raises(Stopped):
            one.result(60)
    until(lambda: not batcher.ready)
    assert isinstance(batcher.fault, SystemExit)
    with pytest.raises(Stopped):
        batcher.ask("a", [1])


def test_what_cannot_be_opened_is_never_ready() -> None:
    """The fault is kept, and whoever listens hears of it; being ready is heard once too."""

    class Closed(Doubling):
        def open(self) -> None:
            raise OSError("no model")

    heard: list[str] = []
    broken: Batcher[str, object, object] = Batcher(Closed(), 1, 1, lambda: heard.append(str(broken.fault)))
    broken.start()
    broken.stop()
    assert heard == ["no model"] and not broken.ready
    whole: Batcher[str, object, object] = Batcher(Doubling(), 1, 1, lambda: heard.append("ready"))
    whole.start()
    until(lambda: whole.ready and len(heard) == 2)
    whole.stop()
    assert heard == ["no model", "ready"]
