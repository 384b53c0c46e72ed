"""`raycl reproduce`: a published table or figure."""

from __future__ import annotations

from typing import Annotated

import typer

from raycl.cli.shared import prepare

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
Seeds = Annotated[int | None, typer.Option(min=1, help="runs per cell at paper scale  (default: as published)")]
Workers = Annotated[int | None, typer.Option(help="Ray Train workers at paper scale  (default: one per GPU)")]
Store = Annotated[
    str | None, typer.Option(help="folder or URI of the stage store  (default: ~/.raycl/store; smoke: a fresh one)")
]
Tracking = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI at paper scale  (default: local)")
]
Output = Annotated[str | None, typer.Option(help="folder for the reports  (default: ~/.raycl/reproductions)")]


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
    prepare()
    from raycl.reproduction.catalogue import find
    from raycl.reproduction.driver import Part, Where, make_place, plan_text, prepared, run_all
    from raycl.reproduction.status import listing

    if name is None:
        return print(listing())
    chosen, part = find(name), Part(tuple(row or ()), tuple(column or ()), seeds)
    with prepared(make_place(scale, data, model or [], workers)) as ready:
        if not plan:
            run_all(chosen, ready, part, Where(output, store, tracking), print)
            return None
        for one in chosen:
            print(plan_text(one, ready, part) + "\n")
    return None
