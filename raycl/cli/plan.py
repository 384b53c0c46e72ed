"""`raycl plan`: what `raycl run` would do with the same flags."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from raycl.cli.run import read_run, run
from raycl.cli.shared import with_flags_of

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]


def plan(as_json: AsJson = False, **flags: Any) -> None:
    """Show what `raycl run` would do with the same flags: stages, what the store holds, steps, tokens, time and memory.

    No weights are loaded and nothing is written; time and memory are estimates.
    """
    spec, options = read_run(**flags)
    from raycl.report import outlook as report
    from raycl.report.terminal import standard_output
    from raycl.sequence.outlook import look_ahead

    found = look_ahead(spec, options)
    said = spec.model_dump(mode="json"), {"store": options.place().uri}
    if as_json:
        print(json.dumps(report.as_json(found, *said), ensure_ascii=False, indent=1))
        return
    report.print_outlook(found, *said, standard_output())


with_flags_of(run, plan, without=("fields",))
