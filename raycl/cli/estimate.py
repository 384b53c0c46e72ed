"""`raycl estimate`: what a run, or a sweep of runs, would take on GPUs that need not be here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from raycl.cli.run import read_run, run
from raycl.cli.shared import gpus_at_hand, make_layers, with_flags_of

Gpus = Annotated[int | None, typer.Option(help="how many GPUs there would be  (default: the machine at hand)")]
Gpu = Annotated[
    str | None,
    typer.Option(help="their kind: h100 | h200 | a100 | l40s | a10 | l4  (default: this machine's, or h100)"),
]
Space = Annotated[
    str | None, typer.Option(help="a space file, as `raycl sweep` takes: every point of its grid is a run")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]
PLACES = ("store", "tracking", "output", "on_drift")


def estimate(gpus: Gpus = None, gpu: Gpu = None, space: Space = None, as_json: AsJson = False, **flags: Any) -> None:
    """Estimate what `raycl run` with the same flags would take, on stated GPUs or here: time by stage, store, memory.

    Nothing is trained and no weights are fetched. Speed is that of stored stages where there are any; else it is timed here,
    or assumed. What is assumed is printed.
    """
    from raycl.sequence.estimate import Asked

    asked = Asked(gpus, gpu)
    spec, options = read_run(gpus=gpus, **flags)
    from raycl.report import estimate as report
    from raycl.report.terminal import standard_output
    from raycl.sequence.estimate import estimate as of_run

    if space is None:
        found = of_run(spec, options, asked)
    else:
        from raycl.sweep.outlook import estimate_sweep
        from raycl.sweep.plan import SweepRequest, sweep_settings

        preset, config, sets = (flags.pop(name) for name in ("preset", "config", "sets"))
        layers = make_layers(config, sets, {name: value for name, value in flags.items() if name not in PLACES})
        known = gpus_at_hand(preset) if gpus is None else gpus
        request = SweepRequest(sweep_settings({"space": space, "search": "grid"}), preset, layers.stack, known)
        found = estimate_sweep(request, options, asked)
    places = {"store": options.place().uri}
    if as_json:
        print(json.dumps(report.as_json(found, places), ensure_ascii=False, indent=1))
        return
    report.print_estimate(found, places, standard_output())


with_flags_of(run, estimate, without=("fields", "workers", "groups", "eval_workers"))
