"""What a sweep would take before it is started: its trials' runs, which share stages by key. No Ray."""

from __future__ import annotations

from dataclasses import replace

from raycl.analysis.estimate import Estimate, SweepEstimate
from raycl.errors import SpecError
from raycl.sequence.driver import Options
from raycl.sequence.estimate import Asked, estimated, imagine
from raycl.sequence.outlook import Lookout
from raycl.sweep.plan import SweepRequest, plan_sweep


def estimate_sweep(request: SweepRequest, options: Options, asked: Asked) -> Estimate:
    """The first trial's run, and the sweep of all. Each trial gets as many GPUs as its batch is shared out over.

    Raises UserError as `plan_sweep`, and SpecError for a space whose points are only suggested while it is searched.
    """
    plan = plan_sweep(request, options.place().uri, named=False)
    if plan.points is None:
        raise SpecError(
            f"--space {request.settings.space}: the points of this space are suggested while it is searched, so that "
            "nothing is known of what they share; give a space of lists only, which is a grid"
        )
    specs = [imagine(plan.trial.spec(point), asked)[0] for point in plan.points]
    spec, hardware = imagine(plan.trial.spec(plan.points[0]), asked)
    lookout = Lookout(options, hardware)
    outlooks = [lookout.look(one) for one in specs]
    found = estimated(spec, outlooks[0], asked)
    return replace(found, sweep=SweepEstimate.of(outlooks, found.at_once))
