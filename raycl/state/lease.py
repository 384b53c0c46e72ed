"""The right to make one stage: while one process holds it, others that need the same stage wait instead of making it too."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout

from raycl.errors import StoreError
from raycl.state.files import Files, make_folder, shared
from raycl.state.keys import require_key

BEAT_SECONDS = 20.0
"""How often a holder shows that it is awake, by the time of its lock file."""
ASLEEP_SECONDS = 300.0
"""A holder that has not shown it for so long is taken to stand still (stopped, or its machine), and loses the right."""
TURN_SECONDS = 5.0
"""How long one that would take the right waits for another one that is just doing so."""
Seen = tuple[int, int]
"""A lock file as it was: its inode, and its time in ns."""


class Lease:
    """A lock on one stage of a local store, by the operating system: a holder that dies loses it at once.

    One that stands still loses it to whoever has waited for `ASLEEP_SECONDS`: the lock file is replaced by a new one. When
    it wakes up, `held` says so, and it must not publish. Nobody compares clocks: who waits sees if the file's time moves.

    A store behind a URI has no such locks; there `acquire` always succeeds, two processes may make the same stage, and
    the first to publish wins.
    """

    def __init__(
        self, folder: Path | None, key: str, beat: float = BEAT_SECONDS, asleep: float = ASLEEP_SECONDS
    ) -> None:
        """`folder` holds the lock files; none = no locks. `beat` and `asleep` as the constants above, in seconds."""
        self._folder, self._beat, self._asleep = folder, beat, asleep
        # The group's members lock one file, where the group may write in the store.
        self._group = folder is not None and shared(str(folder.parent))
        self._lock = None if folder is None else self._lock_on(folder / f"{key}.lock")
        self._own: int | None = None
        """The inode of the file that is locked by this process."""
        self._seen: tuple[Seen | None, float] = (None, 0.0)
        """Another's file as it was last seen, and since when it has been so."""
        self._released = Event()

    @classmethod
    def of(cls, files: Files, key: str) -> Lease:
        """The lease on a stage of the store at the root of `files`."""
        return cls(Path(files.path("leases")) if files.local else None, require_key(key))

    @property
    def held(self) -> bool:
        """Whether this process has the right, now: it may have been taken over."""
        return self._lock is None or (self._own is not None and self._own == self._look()[0])

    def acquire(self, seconds: float) -> bool:
        """Wait for the right at most so long; whether it is held now."""
        if self._lock is None or self._folder is None:
            return True
        try:
            make_folder(str(self._folder), self._group)
            if not self._locked(seconds) and not (self._stands_still() and self._take_over()):
                return False
        except OSError as error:
            raise StoreError(
                f"{self._lock.lock_file}: cannot be locked ({error.strerror}), so two users could make the stage at once; "
                f"next step: let your group write in the store (`chmod -R g+w {self._folder.parent}` and `chmod g+s` its "
                "folders, by their owner), or use a store of your own"
            ) from None
        if self._own is None:
            self._own = self._look()[0]
            self._released = Event()
            Thread(target=self._show, args=(self._own, self._released), daemon=True).start()
        return True

    def release(self) -> None:
        """Give it back, if it is held."""
        self._released.set()
        self._own = None
        if self._lock is not None:
            self._lock.release()

    def _lock_on(self, path: Path) -> FileLock:
        how: dict[str, Any] = {"mode": 0o664} if self._group else {}
        return FileLock(str(path), **how)

    def _locked(self, seconds: float) -> bool:
        if self._lock is None:
            return True
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def _look(self) -> Seen:
        """The lock file that is in place; zeros if there is none."""
        with suppress(FileNotFoundError):
            found = os.stat(self._lock.lock_file if self._lock else "")
            return found.st_ino, found.st_mtime_ns
        return 0, 0

    def _show(self, own: int, released: Event) -> None:
        """Move the file's time on, at once and again, until the lease is given back or lost."""
        while self._look()[0] == own:
            with suppress(OSError):
                os.utime(self._lock.lock_file if self._lock else "")
            if released.wait(self._beat):
                return

    def _stands_still(self) -> bool:
        """Whether the holder's file has been as it is for too long, as far as this process has watched it."""
        now, (seen, since) = self._look(), self._seen
        if now != seen:
            self._seen = (now, time.monotonic())
            return False
        return time.monotonic() - since >= self._asleep

    def _take_over(self) -> bool:
        """Put a file of this process's own in the place of the watched one; whether it is held now.

        Of several that wait one at a time removes it, and only the very file that it has watched.
        """
        if self._folder is None or self._lock is None or self._seen[0] is None:
            return False
        turn = self._lock_on(self._folder / "taking.lock")
        try:
            turn.acquire(timeout=TURN_SECONDS)
        except Timeout:
            return False
        try:
            if self._look() == self._seen[0]:
                os.unlink(self._lock.lock_file)
            return self._locked(0)
        finally:
            turn.release()
