"""The right to make one stage: while one process holds it, others that need the same stage wait instead of making it too."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class Lease:
    """A lock on one stage of a local store, by the operating system: a holder that dies loses it at once.

    A store behind a URI has no such locks; there `acquire` always succeeds, two processes may make the same stage, and
    the first to publish wins.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        """`folder` holds the lock files; none = no locks."""
        self._lock = None if folder is None else FileLock(str(folder / f"{key}.lock"))

    def acquire(self, seconds: float) -> bool:
        """Wait for the right at most so long; whether it is held now."""
        if self._lock is None:
            return True
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._lock is not None:
            self._lock.release()
