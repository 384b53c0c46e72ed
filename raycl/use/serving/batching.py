"""Requests that wait together are answered together, by the one thread that owns the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")
InK = TypeVar("InK", contravariant=True)
InQ = TypeVar("InQ", contravariant=True)
OutA = TypeVar("OutA", covariant=True)


class Full(Exception):
    """There is no room for more that waits."""


class Stopped(Exception):
    """Nothing more is answered."""


class Work(Protocol[InK, InQ, OutA]):
    """What the thread does; all of it is called there."""

    def open(self) -> None:
        """Get ready, which may take long."""
        ...

    def answer(self, key: InK, questions: Sequence[InQ]) -> Sequence[OutA]:
        """Answers to questions of one key, in order."""
        ...

    def close(self) -> None:
        """Put away what `open` took."""
        ...


@dataclass
class _Waiting(Generic[K, Q, A]):
    """A question, and where its answer goes."""

    key: K
    question: Q
    answer: Future[A] = field(default_factory=Future)


class Batcher(Generic[K, Q, A]):
    """A queue of bounded length before one thread. Questions of one key that wait are answered together, oldest first."""

    def __init__(self, work: Work[K, Q, A], most: int, room: int, changed: Callable[[], None] = lambda: None) -> None:
        """At most `most` are answered together and at most `room` wait; `changed` hears, in the thread, that it is ready
        and that it has broken."""
        self.room = room
        self.fault: BaseException | None = None
        """What broke the thread: nothing is answered any more."""
        self._work, self._most, self._changed = work, most, changed
        self._queue: deque[_Waiting[K, Q, A]] = deque()
        self._moved = threading.Condition()
        self._ending = False
        self._open = False
        self._thread = threading.Thread(target=self._run, name="raycl-serve", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether what is asked now will be answered."""
        return self._open and not self._ending and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Questions whose turn has not come."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to get ready."""
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more, answer what waits, and wait for the end of that."""
        with self._moved:
            self._ending = True
            self._moved.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def ask(self, key: K, questions: Sequence[Q]) -> list[Future[A]]:
        """All questions, or none of them. An answer that is cancelled before its turn is not worked for.

        Raises Full where they do not all find room, Stopped where nothing is answered any more.
        """
        asked = [_Waiting[K, Q, A](key, one) for one in questions]
        with self._moved:
            if not self.ready:
                raise Stopped
            self._queue = deque(one for one in self._queue if not one.answer.cancelled())
            if len(self._queue) + len(asked) > self.room:
                raise Full
            self._queue.extend(asked)
            self._moved.notify_all()
        return [one.answer for one in asked]

    def _run(self) -> None:
        try:
            self._work.open()
            self._open = True
            if self.ready:
                self._changed()
            while group := self._next():
                self._answer(group)
            self._work.close()
        except BaseException as error:
            self.fault = error
            self._changed()
        finally:
            self._refuse_rest()

    def _next(self) -> list[_Waiting[K, Q, A]]:
        """The oldest question and those behind it that go with it; empty at the end."""
        with self._moved:
            while not self._queue and not self._ending:
                self._moved.wait()
            if not self._queue:
                return []
            key = self._queue[0].key
            group = list(islice((one for one in self._queue if one.key == key), self._most))
            taken = set(map(id, group))
            self._queue = deque(one for one in self._queue if id(one) not in taken)
        return group

    def _answer(self, group: Sequence[_Waiting[K, Q, A]]) -> None:
        """Answer those that are still wanted; where that fails, each by itself, so that only its cause is left without."""
        wanted = [one for one in group if one.answer.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            found = self._work.answer(wanted[0].key, [one.question for one in wanted])
            for one, answer in zip(wanted, found, strict=True):
                one.answer.set_result(answer)
        except Exception as error:
            if len(wanted) == 1:
                wanted[0].answer.set_exception(error)
                return
            for one in wanted:
                self._alone(one)
        finally:  # what breaks the thread leaves nobody waiting either
            for one in wanted:
                if not one.answer.done():
                    one.answer.set_exception(Stopped())

    def _alone(self, one: _Waiting[K, Q, A]) -> None:
        try:
            (answer,) = self._work.answer(one.key, [one.question])
        except Exception as error:
            one.answer.set_exception(error)
        else:
            one.answer.set_result(answer)

    def _refuse_rest(self) -> None:
        """Nobody is left waiting for a thread that has ended."""
        with self._moved:
            self._ending = True
            left, self._queue = self._queue, deque()
        for one in left:
            if one.answer.set_running_or_notify_cancel():
                one.answer.set_exception(Stopped())
