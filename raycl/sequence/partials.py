"""Mid-stage checkpoints as a stage sees them: its own, wherever they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raycl.state.lease import Lease
from raycl.state.store import Store


@dataclass(frozen=True)
class StagePartial:
    """Mid-stage checkpoints of one stage, in the store."""

    store: Store
    key: str
    right: Lease
    """The right to make the stage: who has lost it must not write over its successor."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint of this stage, or none."""
        return self.store.read_partial(self.key)

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the last checkpoint, unless another process makes the stage by now."""
        if self.right.held:
            self.store.write_partial(self.key, tensors, facts)
