"""The root of a store: made or recognised by a marker file, never taken over from somebody else."""

from __future__ import annotations

from raycl.errors import StoreError, shown
from raycl.state.files import Files
from raycl.state.probe import Probe
from raycl.state.sealed import OtherVersion, seal, unseal

MARKER = "raycl-store.json"
ASIDE = "aside"
"""Where `repair` puts what is damaged."""
ROOMS = (ASIDE, "imported", "leases", "partial", "ray", "scores", "stages")
"""The folders that a store may have."""


class DamagedMarker(StoreError):
    """The marker cannot be read; the stages beside it are what they were."""


def check_marker(files: Files) -> None:
    """Raises StoreError for a marker that is none of a store of this schema, `DamagedMarker` where it can be restored."""
    where = files.uri(MARKER)
    try:
        kind = unseal(files.read(MARKER), where).get("kind")
    except OtherVersion:
        raise
    except StoreError:
        raise DamagedMarker(
            f"{where}: is empty, damaged or edited; the stages beside it are untouched, so keep the store; next step: "
            f"`raycl store repair --store {files.uri()}` writes this file anew; then `raycl store verify` looks at the rest"
        ) from None
    if kind != "raycl-store":
        raise StoreError(f"{where} is no marker of a raycl store. Give another folder")


def mend_marker(files: Files) -> bool:
    """Write a missing or damaged marker anew, where the folder holds a store's things only; says whether it was needed.

    Raises StoreError for a marker of another schema version, and for a folder with somebody else's things.
    """
    try:
        if files.exists(MARKER):
            check_marker(files)
            return False
    except DamagedMarker:
        pass
    if strangers := [name for name in files.names() if name not in (*ROOMS, MARKER)]:
        raise StoreError(
            f"{files.uri()}: holds {shown(strangers[0])}, which is none of a store's ({', '.join(ROOMS)}); next step: give "
            "the store's own folder, or move what is not its own away"
        )
    files.write(MARKER, seal({"kind": "raycl-store"}))
    return True


def prepare_root(files: Files) -> None:
    """Make an empty or new folder a store, or accept the store that is there; then try to write in it.

    Raises StoreError, with nothing changed, if the root is a file, cannot be written, belongs to a store of another
    schema version, or is a folder with something else in it.
    """
    if not files.exists(MARKER):
        others = files.names()
        # Asked again: another process may have made the store between the two looks.
        if others and not files.exists(MARKER):
            raise StoreError(
                f"{files.uri()} is no raycl store and holds {len(others)} other files or folders ({others[0]}, ...). "
                "Give a new or an empty folder"
            )
        files.create(MARKER, seal({"kind": "raycl-store"}))
    check_marker(files)
    with Probe.left(files.uri()):
        pass
