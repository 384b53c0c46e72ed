"""A finished state as files for other programs, and their adapters as stages: `raycl export`, `push`, `import-adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raycl.cli.shared import (
    ConfigFlag,
    DataFlag,
    MethodFlag,
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
from raycl.cli.use import NewTag, Output, Run
from raycl.errors import SpecError

if TYPE_CHECKING:
    from raycl.use.export import Exported

Form = Annotated[
    Literal["auto", "adapter", "model", "routed"],
    typer.Option(
        "--form",
        help="a PEFT adapter, a whole model, or an adapter per task and a router; auto = what is exact, smallest first",
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", help="the one task to export, where each has its own, or that --approximate is for"),
]
Approximate = Annotated[
    Literal["mean"] | None,
    typer.Option(
        "--approximate",
        help="where branches are weighed by the input: give each the mean of its weights, and measure what that costs",
    ),
]
Compress = Annotated[
    int | None, typer.Option("--compress", min=1, help="cut the adapter to this rank, and measure what that costs")
]
Dtype = Annotated[
    Literal["fp32", "bf16"], typer.Option("--dtype", help="numbers of the files; bf16 says how far it moves the logits")
]


def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="a new folder")],
    form: Form = "auto",
    task: Task = None,
    approximate: Approximate = None,
    compress: Compress = None,
    dtype: Dtype = "fp32",
    store: StoreFlag = None,
) -> None:
    """Write what a run has learned as files that PEFT or transformers load without raycl, with a model card.

    Exact, unless --approximate, --compress or --dtype bf16 says otherwise: then what it costs is measured on the run's test
    data, printed, and written into the card.
    """
    prepare()
    from raycl.use.export import export as write
    from raycl.use.forms import ExportChange
    from raycl.use.heads import find_head

    done = write(find_head(run, store), Path(to), form, task, ExportChange(approximate, compress, dtype))
    for path in done.files:
        print(path)
    print(_line(done))
    for one in done.losses:
        change = one.exported - one.served
        print(f"{one.task}: {one.served:.1f} as served, {one.exported:.1f} in the export ({change:+.1f})")
    if done.logits_change is not None:
        print(f"bf16: logits change by at most {done.logits_change:.3g} on test prompts")
    if done.max_lora_rank:
        print(f"for vLLM: --enable-lora --max-lora-rank {done.max_lora_rank}")


def push(
    folder: Annotated[str, typer.Argument(help="what `raycl export` wrote")],
    name: Annotated[str, typer.Argument(help="org/name on the hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="make the repository private")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="a branch  (default: main)")] = None,
) -> None:
    """Put an export on the Hugging Face hub, with the token in the environment's HF_TOKEN."""
    prepare()
    from raycl.models.push import push as put

    print(put(Path(folder), name, private, revision))


def import_adapter(
    folder: Annotated[str, typer.Argument(help="a LoRA adapter as PEFT saves it, in safetensors")],
    task: Annotated[str, typer.Option("--task", help="the task that it was trained for")],
    to: Annotated[str | None, typer.Option("--to", help="a run that it goes on from  (default: a new one)")] = None,
    method: MethodFlag = None,
    model: ModelFlag = None,
    data: DataFlag = None,
    stream: StreamFlag = None,
    preset: PresetFlag = "auto",
    config: ConfigFlag = None,
    sets: SetFlags = None,
    same_base: Annotated[
        bool, typer.Option("--same-base", help="it was trained on this base model, whatever its config names")
    ] = False,
    name: NewTag = None,
    store: StoreFlag = None,
    tracking: TrackingFlag = None,
    output: Output = None,
) -> None:
    """Take in a LoRA adapter that was trained elsewhere: after the last stage of a run, or as the first one of a new run.

    Nothing is trained; what the method takes of the task's data, such as a router's statistics, it takes. A new run has the
    settings of the flags, as `raycl run`; --method is route_lora unless it is named.
    """
    flags = {"method": method, "model": model, "data": data, "stream": stream}
    layers = make_layers(config, sets, flags | {"order": task})
    if to and (config or sets or method or model or data):
        raise SpecError(f"--to {to}: brings its settings; allowed beside it: --task, --stream, --same-base")
    prepare()
    from raycl.report.history import print_appended
    from raycl.sequence.driver import Options
    from raycl.sequence.resolve import resolve
    from raycl.spec import RunSpec
    from raycl.use.heads import find_head
    from raycl.use.heads import tag as name_it
    from raycl.use.imported import ForeignAdapter
    from raycl.use.imported import import_adapter as take_in

    base = {"method": {"name": "route_lora"}}
    run = find_head(to, store) if to else resolve(preset, [base, *layers.stack], gpus_at_hand(preset))
    options = Options(store, tracking, output=output)
    adapter = ForeignAdapter(Path(folder), same_base)
    done = take_in(adapter, run.tasks[0] if isinstance(run, RunSpec) else task, run, options, stream if to else None)
    print_appended(done.before, done.after, f"the adapter is stage {len(done.head.stages)}: {done.head.last[:12]}")
    if name:
        name_it(done.head, name)
        print(f"{name} is now the state with {task}")


def _line(done: Exported) -> str:
    """What it is, and whether it is exact."""
    change = done.change
    ways = ["approximated"] if change.approximate else []
    ways += [f"compressed to rank {change.compress}"] if change.compress is not None else []
    ways += ["rounded to bf16"] if change.dtype == "bf16" else []
    what = {"adapter": "one adapter", "model": "a whole model", "routed": f"{len(done.adapters)} adapters"}[done.form]
    rank = "" if done.rank is None else f" of rank {done.rank}"
    exact = "exact" if done.exact else f"not exact: {', '.join(ways)}"
    return f"{what}{rank}, {exact}, {done.size / 1e6:,.1f} MB"
