"""A small file that one process leaves in a store, and that others look for: whether they see the same place."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raycl.state.files import Files


@dataclass(frozen=True)
class Probe:
    """The file; it can be sent to another process."""

    uri: str
    """The store's, valid in any working directory."""
    name: str
    content: str

    @classmethod
    @contextmanager
    def left(cls, uri: str) -> Iterator[Probe]:
        """A probe that lies in the store while the body runs. Raises StoreError if it cannot be written."""
        files = Files(uri)
        probe = cls(files.uri(), f"probe-{secrets.token_hex(8)}", secrets.token_hex(16))
        files.write(probe.name, probe.content.encode())
        try:
            yield probe
        finally:
            files.remove(probe.name)

    def seen(self) -> bool:
        """Whether this process sees it. Raises StoreError if the place cannot be read."""
        files = Files(self.uri)
        return files.exists(self.name) and files.read(self.name) == self.content.encode()
