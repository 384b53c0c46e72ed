"""Where a run writes: the store and the room it has, MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

from raycl.doctor.finding import Finding, Places
from raycl.doctor.patience import within
from raycl.errors import StoreError, UserError, first_line
from raycl.files import home

LEAST_GIB, ROOMY_GIB = 0.5, 5.0
"""Free space below which a run may not end, and below which it is worth a word."""
TRACKING_SECONDS = 45.0
"""Longest wait for MLflow, whose import alone takes seconds on a busy machine."""


def store_place(places: Places) -> str:
    """The store that a run would use."""
    return places.store or str(home() / "store")


def store(places: Places) -> Finding:
    """Whether the store is one, and can be written. Makes it where there is none, as a run does."""
    from raycl.state.store import Store

    try:
        place = Store(store_place(places))
        new = not place.exists()
        place.check_usable()
    except StoreError as error:
        return Finding("store", "failed", first_line(error), "give a folder that can be written: --store FOLDER")
    stored = len(place.stage_keys())
    return Finding("store", "ok", f"{place.uri}: {'made' if new else 'writable'}, {stored:,} stages")


def disk(places: Places) -> Finding:
    """The free space where the store is."""
    place = store_place(places)
    if "://" in place:
        return Finding("disk", "ok", f"{place}: not a folder here, so its space is not known")
    folder = Path(place).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if free >= ROOMY_GIB:
        return Finding("disk", "ok", found)
    fix = "free some space there, or give a store elsewhere: --store FOLDER"
    return Finding("disk", "failed" if free < LEAST_GIB else "warning", found, fix)


def tracking(places: Places) -> Finding:
    """Whether MLflow's place answers and can be written."""
    from raycl.tracking.server import OFF, resolve_uri, try_writing

    try:
        uri = resolve_uri(places.tracking)
    except UserError as error:
        return Finding("tracking", "failed", first_line(error), "give --tracking URI, or --tracking off")
    if uri == OFF:
        return Finding("tracking", "ok", "off: nothing is recorded in MLflow")
    try:
        within(TRACKING_SECONDS, lambda: try_writing(uri))
    except Exception as error:  # MLflow's own, SQLAlchemy's, requests': they share no base class
        return Finding(
            "tracking",
            "failed",
            f"{uri}: {type(error).__name__}: {first_line(error)[:200]}",
            "start the server (`mlflow server`), correct --tracking or MLFLOW_TRACKING_URI, or give --tracking off",
        )
    return Finding("tracking", "ok", f"{uri}: writable")
