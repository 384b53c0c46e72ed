"""The published tables and figures that raycl can run, one module per paper."""

from __future__ import annotations

from raycl.errors import SpecError, did_you_mean, shown
from raycl.reproduction.form import Reproduction
from raycl.reproduction.tables import am_lora, gain_lora, slao

ALL: dict[str, Reproduction] = {one.id: one for paper in (am_lora, gain_lora, slao) for one in paper.REPRODUCTIONS}
"""Id -> reproduction."""


def find(name: str) -> list[Reproduction]:
    """The reproductions that a name means: an id, a paper, or `all`. Raises SpecError for anything else."""
    found = [one for one in ALL.values() if name in ("all", one.id, one.id.partition("/")[0])]
    if not found:
        raise SpecError(
            f"reproduction {shown(name)}: unknown{did_you_mean(name, ALL)}; allowed: {', '.join(ALL)}, a paper's "
            f"name, or all; "
            "next step: choose one of these"
        )
    return found
