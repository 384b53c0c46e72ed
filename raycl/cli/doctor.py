"""`raycl doctor`: is this machine, and are the places a run needs, fit for it?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raycl.cli.shared import StoreFlag, TrackingFlag, prepare

Quick = Annotated[bool, typer.Option("--quick", help="leave out Ray and the gradient check, which take longest")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]


def doctor(
    store: StoreFlag = None, tracking: TrackingFlag = None, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Check this machine and the places that a run reads and writes: a line each, with the fix for what is wrong.

    Ends with code 2 if something fails that a run needs. Nothing is trained.
    """
    prepare()
    from raycl.doctor.finding import Places
    from raycl.doctor.run import examine
    from raycl.report import doctor as report
    from raycl.report.terminal import standard_output

    findings = examine(Places(store, tracking), quick)
    if as_json:
        seen = list(findings)
        print(json.dumps(report.as_json(seen), ensure_ascii=False, indent=1))
    else:
        seen = report.print_findings(findings, standard_output())
    if any(one.outcome == "failed" for one in seen):
        raise typer.Exit(2)
