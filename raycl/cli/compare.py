"""The command line of `jobs/compare.py`: flags to a grid. Nothing heavy is imported before the flags are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raycl.cli.run import Config, Data, Model, Preset, Sets, StoreOption, Tracking, flag_layer, guarded, quiet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="a method, with settings if you like: gain_lora:over=inf_lora,epsilon=0.99; repeat it. LABEL=... before the "
        "name is its name in the tables; dotted settings are the run spec's (train.lr=1e-3)",
    ),
]
Orders = Annotated[list[str] | None, typer.Option("--order", help="as in jobs/sequence.py; repeat it  [default: demo]")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="repeat it  [default: 0]")]
Bounds = Annotated[
    bool, typer.Option("--bounds", help="add per_task and mtl (upper bounds) and sin_lora (lower bound)")
]
Most = Annotated[int | None, typer.Option(min=1, help="most sequences at a time  [default: as the cluster has room]")]
Workers = Annotated[int | None, typer.Option(help="0 = one after another in this process, without Ray")]
Borrowed = Annotated[bool, typer.Option("--borrowed", help="show the papers' figures beside, marked as borrowed")]
Output = Annotated[str | None, typer.Option(help="folder for the tables  [default: under ~/.raycl/comparisons]")]


@app.command()
def compare(
    method: Methods = None,
    order: Orders = None,
    seed: Seeds = None,
    bounds: Bounds = False,
    model: Model = None,
    data: Data = None,
    preset: Preset = "auto",
    workers: Workers = None,
    max_concurrent: Most = None,
    store: StoreOption = None,
    config: Config = None,
    sets: Sets = None,
    tracking: Tracking = None,
    output: Output = None,
    borrowed: Borrowed = False,
) -> None:
    """Compare methods over orders and seeds, as many sequences at a time as the cluster has room for.

    Results come from the store: the same command again continues where it stopped. A sequence that fails is shown as such
    and stops nothing; then the exit code is 1.
    """
    flags = {"model": model, "source": data}
    grid = {
        "methods": method or [],
        "orders": order or ["demo"],
        "seeds": seed or [0],
        "bounds": bounds,
        "preset": preset,
    }
    how = {"workers": workers, "most": max_concurrent, "borrowed": borrowed}
    guarded(lambda: _run(grid, flags, config, sets or [], (store, tracking, output), how))


def _run(
    grid: dict[str, Any],
    flags: dict[str, Any],
    config: str | None,
    sets: list[str],
    places: tuple[str | None, str | None, str | None],
    how: dict[str, Any],
) -> None:
    from raycl.presets import merge, parse_override, read_config

    settings = merge(read_config(config) if config else {}, flag_layer(flags), *map(parse_override, sets))
    quiet()
    from raycl.comparison.driver import HowToRun, run_comparison
    from raycl.comparison.grid import make_grid_spec
    from raycl.report.comparison import ComparisonTerminal
    from raycl.sequence.driver import Options

    if grid["preset"] == "auto":
        from raycl.cluster import cluster_gpus

        how["gpus"] = cluster_gpus()
    grid["orders"] = grid["orders"] or [str(settings.pop("order", "demo"))]
    grid["seeds"] = grid["seeds"] or [settings.pop("seed", 0)]
    workers = settings.pop("workers", None)
    how |= {"workers": workers if how["workers"] is None else how["workers"]}
    spec = make_grid_spec(grid | {"settings": settings})
    result = run_comparison(
        spec, Options(places[0], places[1], "raycl", places[2]), HowToRun(**how), ComparisonTerminal()
    )
    if result.failed:
        raise typer.Exit(1)
