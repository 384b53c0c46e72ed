"""`raycl run`: one sequence."""

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
    gpus_at_hand,
    make_layers,
    prepare,
)
from raycl.cli.show import fields as show_fields

Workers = Annotated[
    int | None, typer.Option(help="Ray Train workers; 0 = in this process  (default: one per GPU, or one on CPU)")
]
Groups = Annotated[
    int | None,
    typer.Option(help="groups of workers at the same time, for methods whose stages depend on no other  (default: 1)"),
]
Output = Annotated[str | None, typer.Option(help="folder for matrix, plots and spec  (default: under ~/.raycl/runs)")]
Fields = Annotated[bool, typer.Option("--fields", help="list every field of the run spec, as `raycl fields`, and exit")]


def run(
    order: OrderFlag = None,
    method: MethodFlag = None,
    model: ModelFlag = None,
    data: DataFlag = None,
    stream: StreamFlag = None,
    allow_code: CodeFlag = None,
    preset: PresetFlag = "auto",
    seed: SeedFlag = None,
    workers: Workers = None,
    groups: Groups = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
    tracking: TrackingFlag = None,
    output: Output = None,
    fields: Fields = False,
) -> None:
    """Train one model on a sequence of tasks, one after another, and show how much it keeps.

    Finished stages are kept in the store: the same command again continues where it stopped, and a finished sequence
    answers in seconds.
    """
    if fields:
        return show_fields(method or "gain_lora", "" if preset == "auto" else preset)
    flags = {
        "order": order,
        "method": method,
        "model": model,
        "data": data,
        "seed": seed,
        "stream": stream,
        "allow_code": allow_code,
    }
    flags |= {"workers": workers, "groups": groups}
    layers = make_layers(config, sets, flags)
    prepare()
    from raycl.sequence.driver import Options, run_sequence
    from raycl.sequence.resolve import resolve

    spec = resolve(preset, layers.stack, gpus_at_hand(preset))
    run_sequence(spec, Options(store, tracking, output=output))
