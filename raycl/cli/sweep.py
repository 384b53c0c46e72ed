"""The command line of `jobs/sweep.py`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raycl.cli.run import (
    Config,
    Data,
    Method,
    Model,
    Preset,
    Seed,
    Sets,
    StoreOption,
    Tracking,
    flag_layer,
    guarded,
    quiet,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Space = Annotated[str, typer.Option(help="a space file: tune_spaces/*.py, or one of your own")]
Order = Annotated[str, typer.Option(help="demo | std-1..3 | long-4..6 | sni-1..2 | 1..6 | task,task,...")]
Trials = Annotated[int | None, typer.Option(help="number of trials  [default: the whole grid, else 20]")]
Search = Annotated[
    str, typer.Option(help="grid | random | optuna | auto (grid if it has at most --trials points, else optuna)")
]
Scheduler = Annotated[str, typer.Option(help="asha | median | none: what ends bad trials, at the end of a stage")]
Grace = Annotated[int, typer.Option(help="stages before a trial may be ended")]
AtOnce = Annotated[str, typer.Option("--max-concurrent", help="trials at once, or auto: as many as the cluster holds")]
SearchSeed = Annotated[int, typer.Option(help="seed of the search's draws")]
Workers = Annotated[int, typer.Option(help="Ray Train workers of each trial; 1 = the trial's own process")]
Cpus = Annotated[int | None, typer.Option("--cpus-per-trial", help="[default: one per worker]")]
Gpus = Annotated[
    float | None, typer.Option("--gpus-per-trial", help="[default: one per worker if the cluster has GPUs]")
]
Output = Annotated[str | None, typer.Option(help="folder for tables and report  [default: under ~/.raycl/runs]")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the sweep that the output folder records, if any")]


@app.command()
def sweep(
    space: Space,
    order: Order = "demo",
    trials: Trials = None,
    search: Search = "auto",
    scheduler: Scheduler = "asha",
    grace: Grace = 2,
    max_concurrent: AtOnce = "auto",
    search_seed: SearchSeed = 0,
    method: Method = None,
    model: Model = None,
    data: Data = None,
    preset: Preset = "auto",
    seed: Seed = None,
    workers: Workers = 1,
    cpus: Cpus = None,
    gpus: Gpus = None,
    store: StoreOption = None,
    config: Config = None,
    sets: Sets = None,
    tracking: Tracking = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Search settings: every trial is a whole sequence, and trials share the stages up to where they first differ.

    Finished stages are kept in the store; `--resume` goes on with an interrupted sweep.
    """
    chosen = {"space": space, "trials": trials, "search": search, "scheduler": scheduler, "grace": grace}
    chosen |= {"max_concurrent": max_concurrent, "search_seed": search_seed, "workers": workers}
    chosen |= {"cpus_per_trial": cpus, "gpus_per_trial": gpus}
    flags = {"method": method, "model": model, "source": data, "seed": seed}
    guarded(lambda: _run(chosen, order, flags, preset, config, sets or [], (store, tracking, output), resume))


def _run(
    chosen: dict[str, Any],
    order: str,
    flags: dict[str, Any],
    preset: str,
    config: str | None,
    sets: list[str],
    places: tuple[str | None, str | None, str | None],
    resume: bool,
) -> None:
    from raycl.presets import parse_override, read_config

    layers = [{"order": order}, read_config(config) if config else {}, flag_layer(flags)]
    layers += [parse_override(text) for text in sets]
    quiet()
    from raycl.cluster import cluster_gpus
    from raycl.report.sweeps import SweepTerminal
    from raycl.sequence.driver import Options
    from raycl.sweep.plan import sweep_settings
    from raycl.sweep.run import run_sweep

    store, tracking, output = places
    options = Options(store, tracking, "raycl", output)
    run_sweep(sweep_settings(chosen), preset, layers, cluster_gpus(), options, SweepTerminal(), resume)
