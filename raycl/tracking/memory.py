"""Which MLflow run holds what an output folder shows, so that the same command again goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycl.files import write_json
from raycl.tracking.server import resolve_uri

FILE = "mlflow_run.json"


class RunMemory:
    """The note in an output folder: tracking URI, run id, and what was finished. A note of another URI says nothing."""

    def __init__(self, folder: Path, uri: str | None) -> None:
        """`uri` is the tracking URI; none = the default. Raises SpecError for one that cannot be."""
        self._path = folder / FILE
        self._uri = resolve_uri(uri)
        known = self._read()
        self.run_id: str | None = known.get("run_id")
        """The run that an earlier call opened."""
        self.finished: Any = known.get("finished")
        """What an earlier call recorded to its end, in its own words; none = nothing."""

    def _read(self) -> dict[str, Any]:
        """The note, empty if there is none of this URI or it cannot be read: it only saves work."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and known.get("uri") == self._uri else {}

    def remember(self, run_id: str, finished: Any = None) -> None:
        """Note the run, and once all is recorded what was."""
        self.run_id, self.finished = run_id, finished
        write_json(self._path, {"uri": self._uri, "run_id": run_id, "finished": finished})
