"""Calls to a service that may be away: kept in order, retried within bounds, never a reason to stop the caller."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from raycl.errors import first_line

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Tries of a call before the service counts as away."""
FIRST_PAUSE_SECONDS = 30.0
"""Seconds until the next try of a service that is away; doubled at each failure."""
LONGEST_PAUSE_SECONDS = 600.0
MAX_QUEUED_CALLS = 20_000
"""Calls kept through an outage; later ones are lost."""


class Outbox:
    """Makes calls in the order they came in.

    A call that fails for a passing reason waits at the head of the line, with the others behind it, and is tried again
    after a pause that grows, so that an outage costs the caller next to no time. A call that fails for another reason
    is dropped. Each outage and each dropped call is one warning line; `send` and `flush` never raise.
    """

    def __init__(self, service: str, passing: Callable[[BaseException], bool]) -> None:
        """`service` is its name in warnings; `passing` tells a failure that may pass by itself from one that stays."""
        self.service = service
        self._passing = passing
        self._line: deque[tuple[str, Callable[[], object]]] = deque()
        self._lost = 0
        self._pause = 0.0
        self._closed_until = 0.0

    @property
    def waiting(self) -> int:
        """Number of calls that are kept."""
        return len(self._line)

    @property
    def undelivered(self) -> int:
        """Number of calls not made: waiting, or lost because the line was full."""
        return self.waiting + self._lost

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Make `call` now, or as soon as the calls before it are made; `what` names it in a warning."""
        if len(self._line) < MAX_QUEUED_CALLS:
            self._line.append((what, call))
        else:
            self._lost += 1
        self.flush()

    def flush(self, now: bool = False) -> None:
        """Make the waiting calls; `now` = even in the pause after a failure."""
        if time.monotonic() < self._closed_until and not now:
            return
        while self._line:
            what, call = self._line[0]
            try:
                self._retrying()(call)
            except Exception as error:
                if self._passing(error):
                    self._close(what, error)
                    return
                log.warning("%s: %s could not be recorded (%s)", self.service, what, _short(error))
            self._line.popleft()
        if self._pause:
            log.warning("%s: answers again, what waited is recorded", self.service)
        self._pause = self._closed_until = 0.0

    def _close(self, what: str, error: Exception) -> None:
        if not self._pause:
            reason = _short(error)
            log.warning("%s: no answer, the run goes on and %s waits (%s)", self.service, what, reason)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
        self._closed_until = time.monotonic() + self._pause

    def _retrying(self) -> Retrying:
        return Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.1, max=1.0),
            retry=retry_if_exception(self._passing),
            reraise=True,
        )


def _short(error: Exception) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"
