"""All checks, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from raycl.doctor import cluster, machine, models, storage, training
from raycl.doctor.finding import Finding, Places
from raycl.errors import first_line

Check = Callable[[Places], Finding | None]
"""Looks at one thing; none where there is nothing to look at."""
QUICK: tuple[Check, ...] = (
    *(machine.python, machine.torch, machine.gpus, machine.compiler, training.deepspeed),
    *(storage.store, storage.disk, storage.tracking, models.hub, models.packaged),
)
THOROUGH: tuple[Check, ...] = (cluster.ray, cluster.store_on_nodes, training.gradients)
"""What takes longer: a cluster that is joined, two processes that train."""
DEFECT = "the check itself failed, which is a defect of raycl: please open an issue with the output of `raycl version`"

MISSING = "install what is missing, in the versions of requirements.lock: `make setup`"


def examine(places: Places | None = None, quick: bool = False) -> Iterator[Finding]:
    """Look at this machine and at `places`, one finding as soon as it is there.

    `quick` leaves out the cluster and the gradient check. Nothing is trained; a store that is not there is made, as a run
    makes it.
    """
    return findings(QUICK if quick else QUICK + THOROUGH, places or Places())


def findings(checks: Iterable[Check], places: Places) -> Iterator[Finding]:
    """What some checks find. One that breaks is a finding, so that the others are heard."""
    for check in checks:
        try:
            found = check(places)
        except Exception as error:
            name = check.__name__.replace("_", " ")
            fix = MISSING if isinstance(error, ImportError) else DEFECT
            found = Finding(name, "failed", f"{type(error).__name__}: {first_line(error)[:300]}", fix)
        if found is not None:
            yield found
