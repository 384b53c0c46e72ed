"""Keeping a store well: how much it holds, what is damaged in it and can be set aside, what nobody needs any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from raycl.errors import StoreError
from raycl.state.files import Files
from raycl.state.keys import is_key, key_folder
from raycl.state.lease import Lease
from raycl.state.root import ASIDE, ROOMS, mend_marker
from raycl.state.store import Store


@dataclass(frozen=True)
class RoomSize:
    """What a folder of a store holds."""

    room: str
    entries: int
    """Stages, rows of scores, ...: folders with a key's name."""
    files: int
    bytes: int


@dataclass(frozen=True)
class Damage:
    """An entry that cannot be trusted."""

    room: str
    """stages or scores."""
    key: str
    problem: str
    """What is wrong and the remedy."""


@dataclass(frozen=True)
class Leftover:
    """An entry that nobody needs as far as is known."""

    room: str
    """stages or partial."""
    key: str
    bytes: int
    about: str
    """What it is, for people."""


def sizes(uri: str) -> list[RoomSize]:
    """How much each folder of a store holds; those that are not there are left out."""
    files = Files(uri)
    found = []
    for room in ROOMS:
        if held := files.sizes(room):
            keys = {part for name in held for part in name.split("/") if is_key(part)}
            found.append(RoomSize(room, len(keys), len(held), sum(held.values())))
    return found


def damages(store: Store) -> list[Damage]:
    """Every stage and row of scores whose own files are not what was written."""
    found = []
    for room, key in store.entries():
        try:
            store.read(key) if room == "stages" else store.read_predictions(key)
        except StoreError as error:
            found.append(Damage(room, key, str(error)))
    return found


def repair(uri: str) -> tuple[bool, list[Damage]]:
    """Write a damaged marker anew and set damaged entries aside, so that the runs that need them make them again.

    Nothing is deleted: what was set aside lies under `aside/`. Returns whether the marker was mended, and the entries.
    Raises StoreError for a folder that is no store, and while a run is at work in it.
    """
    files = Files(uri)
    mended = mend_marker(files)
    _require_rest(files, uri)
    found = damages(Store(uri))
    for one in found:
        _move_away(files, one.room, one.key)
    return mended, found


def set_aside(uri: str, entries: Iterable[tuple[str, str]]) -> None:
    """Move entries (stages or scores, key) of a store away, to `aside/` in it. Raises StoreError while a run is at work."""
    files = Files(uri)
    _require_rest(files, uri)
    for room, key in entries:
        _move_away(files, room, key)


def _move_away(files: Files, room: str, key: str) -> None:
    """Move an entry away: first the file that makes it one, so that nobody meets half of it."""
    folder = key_folder(room, key)
    away = f"{ASIDE}/{room}/{key}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    last = "manifest.json" if room == "stages" else "scores.json"
    files.move(f"{folder}/{last}", f"{away}/{last}")
    for name in sorted(files.sizes(folder)):
        files.move(f"{folder}/{name}", f"{away}/{name}")
    files.remove(folder)


def leftovers(store: Store, needed: Collection[str], days: float) -> list[Leftover]:
    """Stages that are older than `days` and that none of the `needed` ones is or stands on, and mid-stage checkpoints of
    stages that are stored.

    A stage that cannot be read is none: `repair` is for those; a needed one that cannot raises StoreError, since nothing may
    be deleted that is not understood. Scores are never left over, since they are small.
    """
    kept = {key for one in needed if store.has(one) for key in store.lineage(one)}
    until = datetime.now(UTC) - timedelta(days=days)
    found = []
    for key in store.stage_keys():
        try:
            manifest = store.manifest(key)
            made = datetime.fromisoformat(manifest.created)
        except (StoreError, ValueError):
            continue
        if key not in kept and (made if made.tzinfo else made.replace(tzinfo=UTC)) < until:
            about = f"stage {manifest.stage}, task {manifest.task}, made {manifest.created[:10]}"
            found.append(Leftover("stages", key, sum(file.bytes for file in manifest.files.values()), about))
    files = Files(store.uri)
    for name in files.sizes("partial"):
        key = name.split("/")[1]
        if name.endswith("/partial.json") and store.has(key):
            size = sum(files.sizes(key_folder("partial", key)).values())
            found.append(Leftover("partial", key, size, "checkpoint of a stage that is finished"))
    return found


def discard(uri: str, found: Sequence[Leftover]) -> None:
    """Delete what is left over. Raises StoreError while a run is at work in the store."""
    files = Files(uri)
    _require_rest(files, uri)
    for one in found:
        folder = key_folder(one.room, one.key)
        if one.room == "stages":
            files.remove(f"{folder}/manifest.json")  # first, so that nobody meets half a stage
        files.remove(folder)


def busy(uri: str) -> list[str]:
    """The keys of the stages that a run makes right now; of a store behind a URI nobody knows."""
    files = Files(uri)
    if not files.local:
        return []
    return [key for name in files.names("leases") if is_key(key := name.removesuffix(".lock")) and _held(files, key)]


def _held(files: Files, key: str) -> bool:
    lease = Lease.of(files, key)
    if lease.acquire(0):
        lease.release()
        return False
    return True


def _require_rest(files: Files, uri: str) -> None:
    if held := busy(uri):
        raise StoreError(
            f"{files.uri()}: a run makes stage {held[0][:12]} right now, and may need any other; next step: wait for its "
            "end, then give the same command again"
        )
