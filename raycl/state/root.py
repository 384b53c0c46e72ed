"""The root of a store: made or recognised by a marker file, never taken over from somebody else."""

from __future__ import annotations

import secrets

from raycl.errors import StoreError
from raycl.state.files import Files
from raycl.state.sealed import seal, unseal

MARKER = "raycl-store.json"


def prepare_root(files: Files) -> None:
    """Make an empty or new folder a store, or accept the store that is there; then try to write in it.

    Raises StoreError, with nothing changed, if the root is a file, cannot be written, belongs to a store of another
    schema version, or is a folder with something else in it.
    """
    where = files.uri(MARKER)
    if not files.exists(MARKER):
        others = files.names()
        # Asked again: another process may have made the store between the two looks.
        if others and not files.exists(MARKER):
            raise StoreError(
                f"{files.uri()} is no raycl store and holds {len(others)} other files or folders ({others[0]}, ...). "
                "Give a new or an empty folder"
            )
        files.create(MARKER, seal({"kind": "raycl-store"}))
    if unseal(files.read(MARKER), where).get("kind") != "raycl-store":
        raise StoreError(f"{where} is no marker of a raycl store. Give another folder")
    probe = f"probe-{secrets.token_hex(8)}"
    files.write(probe, b"raycl")
    files.remove(probe)
