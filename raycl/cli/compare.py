"""`raycl compare`: methods over orders and seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from raycl.cli.shared import (
    CodeFlag,
    ConfigFlag,
    DataFlag,
    ModelFlag,
    PresetFlag,
    SetFlags,
    StoreFlag,
    StreamFlag,
    TrackingFlag,
    gpus_at_hand,
    make_layers,
    prepare,
)

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="a method, with settings if you like: gain_lora:over=inf_lora,epsilon=0.99; repeat it. LABEL=... before the "
        "name is its name in the tables; dotted settings are the run spec's (train.lr=1e-3). A class of your own is "
        "package.module:Class, or with settings package.module:Class:FIELD=VALUE,...",
    ),
]
Orders = Annotated[list[str] | None, typer.Option("--order", help="as in `raycl run`; repeat it  (default: demo)")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="repeat it  (default: 0)")]
Bounds = Annotated[
    bool, typer.Option("--bounds", help="add per_task and mtl (upper bounds) and sin_lora (lower bound)")
]
Most = Annotated[int | None, typer.Option(min=1, help="most sequences at a time  (default: as the cluster has room)")]
Workers = Annotated[int | None, typer.Option(help="0 = one after another in this process, without Ray")]
Borrowed = Annotated[bool, typer.Option("--borrowed", help="show the papers' figures beside, marked as borrowed")]
Output = Annotated[str | None, typer.Option(help="folder for the tables  (default: under ~/.raycl/comparisons)")]


def compare(
    method: Methods = None,
    order: Orders = None,
    seed: Seeds = None,
    bounds: Bounds = False,
    model: ModelFlag = None,
    data: DataFlag = None,
    stream: StreamFlag = None,
    allow_code: CodeFlag = None,
    preset: PresetFlag = "auto",
    workers: Workers = None,
    max_concurrent: Most = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
    tracking: TrackingFlag = None,
    output: Output = None,
    borrowed: Borrowed = False,
) -> None:
    """Compare methods over orders and seeds, as many sequences at a time as the cluster has room for.

    Results come from the store: the same command again continues where it stopped. A sequence that fails is shown as such
    and stops nothing; the exit code then says whose fault it was: 2 if the user can mend all of them, else 1.
    """
    layers = make_layers(
        config,
        sets,
        {"model": model, "data": data, "stream": stream, "allow_code": allow_code, "workers": workers},
    )
    prepare()
    from raycl.comparison.driver import HowToRun, run_comparison
    from raycl.comparison.grid import grid_of
    from raycl.sequence.driver import Options

    grid = grid_of(layers.stack, {"methods": method, "orders": order, "seeds": seed}, bounds=bounds, preset=preset)
    how = HowToRun(layers.said("workers"), max_concurrent, gpus_at_hand(preset), borrowed)
    result = run_comparison(grid, Options(store, tracking, output=output), how)
    if result.failed:
        raise typer.Exit(1 if result.defects else 2)
