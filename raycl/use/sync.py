"""Finished runs that MLflow has not, or not in whole: recorded from what their folders and the store hold, exactly once."""

from __future__ import annotations

from pathlib import Path

from raycl.files import home
from raycl.sequence.driver import Options, record_sequence
from raycl.sequence.job import make_job
from raycl.tracking.memory import unrecorded
from raycl.use.heads import SPEC, SUMMARY, Head


def unrecorded_runs() -> list[Path]:
    """Folders of the finished runs in raycl's home that lack something under the tracking URI they were made with."""
    folders = sorted(path.parent for path in (home() / "runs").glob(f"*/{SUMMARY}") if (path.parent / SPEC).is_file())
    return [folder for folder in folders if unrecorded(folder)]


def record_run(head: Head, folder: Path, tracking: str | None) -> bool:
    """Record a finished run under a tracking URI (none = the default); whether MLflow has all of it then.

    A run that is there is gone on with: what it has is not recorded twice. Raises UserError for data that cannot be read
    any more, and for a URI that cannot be.
    """
    return record_sequence(make_job(head.spec, head.store), Options(head.store.uri, tracking), folder)
