"""What a run, or a sweep of runs, would take on hardware that need not be here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raycl.analysis.outlook import Outlook
from raycl.files import Json


@dataclass(frozen=True)
class SweepEstimate:
    """A sweep of whole runs that share their stages by key."""

    trials: int
    at_once: int
    """Trials that run at the same time."""
    needed: int
    """Stage runs of all trials, each trial on its own."""
    distinct: int
    """Different stages among them."""
    stored: int
    """Of the different ones: in the store before."""
    apart_seconds: float
    """All trials one after another, each on its own."""
    seconds: float
    """With each stage made once and trials side by side: the whole work over what runs at once, but no less than the longest
    trial."""

    @classmethod
    def of(cls, outlooks: Sequence[Outlook], at_once: int) -> SweepEstimate:
        """From what each trial's run would do, of which `at_once` go on at the same time."""
        works = [stage_seconds(one) for one in outlooks]
        distinct = {key: seconds for work in works for key, seconds in work.items()}
        stored = {stage.key for one in outlooks for stage in one.stages if stage.stored}
        each = [sum(work.values()) for work in works]
        return cls(
            trials=len(outlooks),
            at_once=min(at_once, len(outlooks)),
            needed=sum(map(len, works)),
            distinct=len(distinct),
            stored=len(stored),
            apart_seconds=sum(each),
            seconds=max(sum(distinct.values()) / min(at_once, len(outlooks)), *each, 0.0),
        )


def stage_seconds(outlook: Outlook) -> dict[str, float]:
    """Stage key -> seconds of the stage and of the row that is scored after it; the untrained model's with the first."""
    seconds = {number: sum(part or 0.0 for part in parts.values()) for number, parts in outlook.seconds.items()}
    keys = [stage.key for stage in outlook.stages]
    found = dict.fromkeys(keys, 0.0)
    for number, value in seconds.items():
        found[keys[max(0, min(number, len(keys)) - 1)]] += value
    return found


@dataclass(frozen=True)
class Estimate:
    """A run on stated hardware."""

    spec: Json
    """The run spec as it would be run there; of a sweep that of the first trial."""
    outlook: Outlook
    gpus: int
    """How many there are; 0 = the machine at hand."""
    assumptions: tuple[str, ...]
    """What the figures stand on."""
    sweep: SweepEstimate | None = None

    @property
    def at_once(self) -> int:
        """Runs that the GPUs hold at the same time, each with its processes."""
        return max(1, self.gpus // self.outlook.workers)
