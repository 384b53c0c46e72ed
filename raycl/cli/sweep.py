"""`raycl sweep`: the settings of a method, searched by Ray Tune."""

from __future__ import annotations

from typing import Annotated

import typer

from raycl.cli.shared import (
    CodeFlag,
    ConfigFlag,
    DataFlag,
    MethodFlag,
    ModelFlag,
    OrderFlag,
    PresetFlag,
    SeedFlag,
    SetFlags,
    StoreFlag,
    StreamFlag,
    TrackingFlag,
    make_layers,
    prepare,
)

Space = Annotated[str, typer.Option(help="a space file: tune_spaces/*.py, or one of your own")]
Trials = Annotated[int | None, typer.Option(help="number of trials  (default: the whole grid, else 20)")]
Search = Annotated[
    str, typer.Option(help="grid | random | optuna | auto (grid if it has at most --trials points, else optuna)")
]
Scheduler = Annotated[str, typer.Option(help="asha | median | none: what ends bad trials, at the end of a stage")]
Grace = Annotated[int, typer.Option(help="stages before a trial may be ended")]
AtOnce = Annotated[str, typer.Option("--max-concurrent", help="trials at once, or auto: as many as the cluster holds")]
SearchSeed = Annotated[int, typer.Option(help="seed of the search's draws")]
Workers = Annotated[int, typer.Option(help="Ray Train workers of each trial; 1 = the trial's own process")]
Pack = Annotated[
    int, typer.Option(help="stages of one parent that a process trains at once, in one pass over the model")
]
Cpus = Annotated[int | None, typer.Option("--cpus-per-trial", help="(default: one per worker)")]
Gpus = Annotated[
    float | None, typer.Option("--gpus-per-trial", help="(default: one per worker if the cluster has GPUs)")
]
Output = Annotated[str | None, typer.Option(help="folder for tables and report  (default: under ~/.raycl/runs)")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the sweep that the output folder records, if any")]


def sweep(
    space: Space,
    order: OrderFlag = None,
    trials: Trials = None,
    search: Search = "auto",
    scheduler: Scheduler = "asha",
    grace: Grace = 2,
    max_concurrent: AtOnce = "auto",
    search_seed: SearchSeed = 0,
    method: MethodFlag = None,
    model: ModelFlag = None,
    data: DataFlag = None,
    stream: StreamFlag = None,
    allow_code: CodeFlag = None,
    preset: PresetFlag = "auto",
    seed: SeedFlag = None,
    pack: Pack = 1,
    workers: Workers = 1,
    cpus: Cpus = None,
    gpus: Gpus = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
    tracking: TrackingFlag = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Search settings: every trial is a whole sequence, and trials share the stages up to where they first differ.

    Finished stages are kept in the store; `--resume` goes on with an interrupted sweep.
    """
    chosen = {"space": space, "trials": trials, "search": search, "scheduler": scheduler, "grace": grace}
    chosen |= {"max_concurrent": max_concurrent, "search_seed": search_seed, "workers": workers, "pack": pack}
    chosen |= {"cpus_per_trial": cpus, "gpus_per_trial": gpus}
    flags = {
        "order": order,
        "method": method,
        "model": model,
        "data": data,
        "seed": seed,
        "stream": stream,
        "allow_code": allow_code,
    }
    layers = make_layers(config, sets, flags)
    prepare()
    from raycl.cluster import cluster_gpus
    from raycl.sequence.driver import Options
    from raycl.sweep.plan import SweepRequest, sweep_settings
    from raycl.sweep.run import run_sweep

    request = SweepRequest(sweep_settings(chosen), preset, layers.stack, cluster_gpus(), resume)
    run_sweep(request, Options(store, tracking, output=output))
