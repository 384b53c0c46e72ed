"""What a check is given and what it finds. Knows nothing else, so that reports can be made of it anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Places:
    """Where a run would read and write; the values of `raycl run`'s flags."""

    store: str | None = None
    """Folder or URI of the stage store; none = raycl's own."""
    tracking: str | None = None
    """MLflow tracking URI, or `off`; none = as a run chooses it."""


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    check: str
    outcome: Outcome
    """`failed` = a run needs it; `warning` = some runs do."""
    found: str
    fix: str = ""
    """What to do about it; empty where nothing is to be done."""

    def __post_init__(self) -> None:
        if (self.outcome == "ok") == bool(self.fix):
            raise ValueError(f"finding {self.check}: what is not ok has a fix, and what is ok has none")
