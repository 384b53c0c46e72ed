"""The command line of `jobs/reproduce.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from raycl.cli.run import guarded, quiet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Name = Annotated[str | None, typer.Argument(help="paper/table, a paper, or `all`; none = list them")]
Scale = Annotated[str, typer.Option(help="smoke: a tiny random model, minutes on a laptop | paper: the real thing")]
Plan = Annotated[bool, typer.Option("--plan", help="show what would run, with keys and cost, and exit")]
Data = Annotated[
    str,
    typer.Option(
        envvar="RAYCL_DATA", help="folder with the benchmark, or `hub`; without one, smoke uses the demo's data"
    ),
]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="NAME=FOLDER, a local copy of a paper's model; may be repeated")
]
Rows = Annotated[list[str] | None, typer.Option("--row", help="only this row; may be repeated")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="only this column; may be repeated")]
Seeds = Annotated[int | None, typer.Option(min=1, help="runs per cell at paper scale  [default: as published]")]
Workers = Annotated[int | None, typer.Option(help="Ray Train workers at paper scale  [default: one per GPU]")]
Store = Annotated[
    str | None, typer.Option(help="folder or URI of the stage store  [default: ~/.raycl/store; smoke: a fresh one]")
]
Tracking = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI at paper scale  [default: local]")
]
Output = Annotated[str | None, typer.Option(help="folder for the reports  [default: ~/.raycl/reproductions]")]


@app.command()
def reproduce(
    name: Name = None,
    scale: Scale = "smoke",
    plan: Plan = False,
    data: Data = "hub",
    model: Models = None,
    row: Rows = None,
    column: Columns = None,
    seeds: Seeds = None,
    workers: Workers = None,
    store: Store = None,
    tracking: Tracking = None,
    output: Output = None,
) -> None:
    """Run a published table or figure, and lay what is measured beside what was published.

    Finished stages are kept in the store: the same command again continues where it stopped.
    """
    place = (scale, data, model or [], workers)
    part = (tuple(row or ()), tuple(column or ()), seeds)
    guarded(lambda: _run(name, plan, place, part, (output, store, tracking)))


def _run(
    name: str | None,
    plan: bool,
    place: tuple[str, str, list[str], int | None],
    part: tuple[tuple[str, ...], tuple[str, ...], int | None],
    where: tuple[str | None, str | None, str | None],
) -> None:
    quiet()
    from raycl.reproduction.catalogue import find
    from raycl.reproduction.driver import Part, Where, make_place, plan_text, prepared, run_all
    from raycl.reproduction.status import listing

    if name is None:
        return print(listing())
    chosen = find(name)
    with prepared(make_place(*place)) as ready:
        if not plan:
            return run_all(chosen, ready, Part(*part), Where(*where), print)
        for one in chosen:
            print(plan_text(one, ready, Part(*part)) + "\n")
