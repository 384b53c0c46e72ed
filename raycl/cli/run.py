"""`raycl run`: one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

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

if TYPE_CHECKING:
    from raycl.sequence.driver import Options
    from raycl.spec import RunSpec

Workers = Annotated[
    int | None, typer.Option(help="Ray Train workers; 0 = in this process  (default: one per GPU, or one on CPU)")
]
Groups = Annotated[
    int | None,
    typer.Option(help="groups of workers at the same time, for methods whose stages depend on no other  (default: 1)"),
]
EvalWorkers = Annotated[
    int | None,
    typer.Option(
        "--eval-workers", help="further workers that score each stage while the next ones train  (default: 0)"
    ),
]
Output = Annotated[str | None, typer.Option(help="folder for matrix, plots and spec  (default: under ~/.raycl/runs)")]
Drift = Annotated[
    Literal["fail", "rebuild", "accept"],
    typer.Option("--on-drift", help="what becomes of stored stages whose parent was made again and came out otherwise"),
]
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
    eval_workers: EvalWorkers = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
    tracking: TrackingFlag = None,
    output: Output = None,
    on_drift: Drift = "fail",
    fields: Fields = False,
) -> None:
    """Train one model on a sequence of tasks, one after another, and show how much it keeps.

    Finished stages are kept in the store: the same command again continues where it stopped, and a finished sequence
    answers in seconds.
    """
    if fields:
        return show_fields(method or "gain_lora", "" if preset == "auto" else preset)
    flags = {
        **{"order": order, "method": method, "model": model, "data": data, "seed": seed, "stream": stream},
        **{"allow_code": allow_code, "workers": workers, "groups": groups, "eval_workers": eval_workers},
    }
    places = {"store": store, "tracking": tracking, "output": output, "on_drift": on_drift}
    spec, options = read_run(preset=preset, config=config, sets=sets, **flags, **places)
    from raycl.sequence.driver import plan_job, run_job

    run_job(plan_job(spec, options), options)


def read_run(
    preset: str, config: str | None, sets: list[str] | None, gpus: int | None = None, **flags: Any
) -> tuple[RunSpec, Options]:
    """The run spec and the places that flags of `run` say; `gpus` in the place of those at hand.

    Raises SpecError that lists what is wrong.
    """
    places = {name: flags.pop(name) for name in ("store", "tracking", "output", "on_drift")}
    layers = make_layers(config, sets, flags)
    prepare()
    from raycl.sequence.driver import Options
    from raycl.sequence.resolve import resolve

    known = gpus_at_hand(preset) if gpus is None else gpus
    return resolve(preset, layers.stack, known), Options(**places)
