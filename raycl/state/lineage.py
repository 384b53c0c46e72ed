"""Whether stages still stand on what they were trained on: a parent that was made again may have come out otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from raycl.errors import some
from raycl.files import dotted
from raycl.state.manifest import Manifest

ON_DRIFT = (
    "next step: the same command with --on-drift rebuild makes it and what follows anew, with --on-drift accept it goes on "
    "as it is"
)


@dataclass(frozen=True)
class Drift:
    """A stage whose parent is not what it was trained on any more."""

    parent: Manifest
    child: Manifest

    @property
    def words(self) -> str:
        """Both digests, and what was different where the two were made."""
        child, parent = self.child, self.parent
        return (
            f"stage {child.stage} ({child.task}, {child.key[:12]}) was trained on the digest "
            f"{str(child.parent_digest)[:12]} of stage {parent.stage} ({parent.task}, {parent.key[:12]}), which has the "
            f"digest {parent.digest[:12]} now: it was made again and came out otherwise ({differences(parent, child)})"
        )


def drifts(chain: Sequence[Manifest]) -> list[Drift]:
    """The stages of a chain, first to last, whose parent's digest is not the one that they recorded."""
    return [
        Drift(parent, child)
        for parent, child in pairwise(chain)
        if child.parent_digest is not None and child.parent_digest != parent.digest
    ]


def differences(later: Manifest, earlier: Manifest) -> str:
    """In what surroundings two stages were made that are not the same: libraries, device, workers."""
    now, then = _surroundings(later), _surroundings(earlier)
    found = [
        f"{name} {then.get(name)} then, {now.get(name)} now" for name in now | then if now.get(name) != then.get(name)
    ]
    return some(found) if found else "both record the same libraries and device"


def _surroundings(manifest: Manifest) -> dict[str, object]:
    seen = {name: manifest.runtime.get(name) for name in ("device", "device_name", "workers")}
    return dotted({**manifest.environment, **seen})
