"""Calls to a service that may be away or slow: made beside the caller's work, in order, never a reason to stop it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from raycl.errors import first_line

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""What a service that is away, or that does not answer, may cost its caller in all."""
LONGEST_WAIT_SECONDS = 60.0
"""What one that does answer, if slowly, may cost."""
FIRST_PAUSE_SECONDS = 1.0
"""Seconds until the next try of a service that is away; doubled at each failure."""
LONGEST_PAUSE_SECONDS = 60.0
HURRIED_PAUSE_SECONDS = 0.2
"""The same while the caller waits; and how long it waits at least, so that there is one more try."""
SHORT_OUTAGE_SECONDS = 10.0
"""An outage is not worth a word before it has lasted so long: another process may be making the database."""
MAX_QUEUED_CALLS = 20_000
"""Calls kept through an outage; later ones are lost."""


class Outbox:
    """Makes calls in a thread of its own, in the order they came in.

    A call that fails for a passing reason waits at the head of the line, with the others behind it, and is tried again
    after a pause that grows. A call that fails for another reason is dropped. Each outage that lasts, or that a caller
    waited for, and each dropped call is one warning line; `send` and `wait` never raise, and only `wait` takes the caller's
    time. What many send to one service goes through one outbox, so that an outage costs them its patience once.
    """

    def __init__(
        self, service: str, passing: Callable[[BaseException], bool], silence: float = PATIENCE_SECONDS
    ) -> None:
        """`service` is its name in warnings; `passing` tells a failure that may pass by itself from one that stays.

        `silence` is how many seconds a call under way is waited for: longer than a service that is away, for one whose
        answers are work of this machine.
        """
        self.service = service
        self._passing, self._silence = passing, silence
        self._line: deque[tuple[str, Callable[[], object]]] = deque()
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None
        self._made = self._lost = 0
        self._pause = 0.0
        """Seconds until the next try; 0 = the service answers."""
        self._waited = 0.0
        """Seconds that callers have waited for nothing since the service last answered."""
        self._hurried = False
        self._away_since = 0.0
        self._trouble, self._warned = "", False
        """What keeps calls from being made, and whether it was said."""

    @property
    def undelivered(self) -> int:
        """Number of calls not made: waiting, or lost because the line was full."""
        return len(self._line) + self._lost

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Have `call` made as soon as the calls before it are; `what` names it in a warning."""
        with self._moved:
            if len(self._line) < MAX_QUEUED_CALLS:
                self._line.append((what, call))
            else:
                self._lost += 1
            if self._thread is None:
                # A daemon: what a service does not take keeps no process alive.
                self._thread = threading.Thread(target=self._work, name=f"{self.service} outbox", daemon=True)
                self._thread.start()
            self._moved.notify_all()

    def wait(self) -> bool:
        """Wait until all calls are made, as long as they are being made; whether they are.

        However often it is called, an outage takes no more than `PATIENCE_SECONDS`.
        """
        began = time.monotonic()
        with self._moved:
            self._hurried = True
            self._moved.notify_all()
            while self._line and time.monotonic() - began < LONGEST_WAIT_SECONDS:
                if not self._moves():
                    self._warn()
                    break
            self._hurried = False
            return not self._line

    def _moves(self) -> bool:
        """Whether another call is made before the patience is at its end."""
        made, began = self._made, time.monotonic()
        while self._made == made and self._line:
            patience = (PATIENCE_SECONDS if self._pause else self._silence) - self._waited
            if time.monotonic() - began >= max(patience, HURRIED_PAUSE_SECONDS):
                self._waited += time.monotonic() - began
                return False
            self._moved.wait(HURRIED_PAUSE_SECONDS)
        return True

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._line)
                what, call = self._line[0]
            failure = _failure(call)
            with self._moved:
                if failure is not None and self._passing(failure):
                    self._stay_away(what, failure)
                    continue
                if failure is not None:
                    log.warning("%s: %s could not be recorded (%s)", self.service, what, _short(failure))
                elif self._warned:
                    log.warning("%s: answers again, what waited is recorded", self.service)
                self._trouble, self._warned = "", False
                self._pause = self._waited = 0.0
                self._line.popleft()
                self._made += 1
                self._moved.notify_all()

    def _stay_away(self, what: str, failure: Exception) -> None:
        """Pause; the caller may be in a hurry by now."""
        now = time.monotonic()
        self._away_since = self._away_since if self._pause else now
        self._trouble = f"no answer, the run goes on and {what} waits ({_short(failure)})"
        if now - self._away_since >= SHORT_OUTAGE_SECONDS:
            self._warn()
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
        self._moved.notify_all()
        if self._hurried:
            self._moved.wait(HURRIED_PAUSE_SECONDS)
        else:
            self._moved.wait_for(lambda: self._hurried, timeout=self._pause)

    def _warn(self) -> None:
        """Say once what the trouble is; a call that is only slow is none that could be named."""
        if self._trouble and not self._warned:
            log.warning("%s: %s", self.service, self._trouble)
            self._warned = True


class ClosedOutbox(Outbox):
    """Makes no call at all, for who wants nothing recorded."""

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Forget the call."""


def _failure(call: Callable[[], object]) -> Exception | None:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def _short(error: Exception) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"
