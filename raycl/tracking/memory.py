"""Which MLflow run holds what an output folder shows, so that the same command again goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from raycl.files import write_json
from raycl.tracking.server import OFF, resolve_uri

FILE, LOCK = "mlflow_run.json", ".mlflow_run.lock"


def unrecorded(folder: Path) -> str | None:
    """The tracking URI under which a folder's run still lacks something; none where nothing is lacking, or noted."""
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8"))
        uri = known["uri"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return uri if RunMemory(folder, uri).finished is None else None


class RunMemory:
    """The note in an output folder: tracking URI, run id, and what was finished. A note of another URI says nothing.

    Of several processes that want to record the same folder one may: who holds its lock.
    """

    def __init__(self, folder: Path, uri: str | None) -> None:
        """`uri` is the tracking URI; none = the default. Raises SpecError for one that cannot be."""
        self._path = folder / FILE
        self._lock = FileLock(folder / LOCK)
        self._uri = resolve_uri(uri)
        self._take(self._read())

    def _take(self, known: dict[str, Any]) -> None:
        self.run_id: str | None = known.get("run_id") or None
        """The run that an earlier call opened."""
        self.mark: str = known.get("mark") or uuid4().hex
        """What the run is marked with, so that it is found also where its id was never noted."""
        self.finished: Any = known.get("finished") if self.run_id or self._uri == OFF else None
        """What an earlier call recorded to its end, in its own words; none = nothing."""

    def _read(self) -> dict[str, Any]:
        """The note, empty if there is none of this URI or it cannot be read: it only saves work."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and known.get("uri") == self._uri else {}

    def claim(self) -> bool:
        """Whether this process may record, until `release`; what another one noted in between is read again."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            pass  # a file system without locks: nobody can be told apart there
        self._take(self._read())
        self.remember(self.run_id or "")
        return True

    def release(self) -> None:
        """Let others record."""
        self._lock.release()

    def remember(self, run_id: str, finished: Any = None) -> None:
        """Note the run, and once all is recorded what was."""
        self.run_id, self.finished = run_id or None, finished
        write_json(self._path, {"uri": self._uri, "run_id": run_id, "mark": self.mark, "finished": finished})
