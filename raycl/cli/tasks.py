"""`raycl tasks`: the tasks there are, one of them, and whether a stream of one's own is fit to train on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raycl.cli.shared import (
    CodeFlag,
    ConfigFlag,
    DataFlag,
    ModelFlag,
    PresetFlag,
    SetFlags,
    StreamFlag,
    make_layers,
    prepare,
)

app = typer.Typer(help="List tasks, show one, check a stream of your own.", no_args_is_help=True)
File = Annotated[str, typer.Argument(help="YAML file of a task stream (docs/streams.md)")]
Name = Annotated[str, typer.Argument(help="a task's name")]


@app.command("list")
def list_tasks(stream: StreamFlag = None) -> None:
    """List every task: stream, category, labels, metric, licence."""
    from raycl.report.task_check import print_tasks
    from raycl.tasks.catalogue import open_catalogue

    known = open_catalogue(stream)
    print_tasks({name: (known.home(name), entry) for name, entry in known.tasks.items()})


@app.command()
def show(
    name: Name,
    stream: StreamFlag = None,
    data: DataFlag = None,
    model: ModelFlag = None,
    preset: PresetFlag = "auto",
    allow_code: CodeFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
) -> None:
    """Show a task as its stream describes it, and three of its examples as the model would read them."""
    flags = {"data": data, "stream": stream, "model": model, "allow_code": allow_code}
    spec, known, names = _opened(flags, preset, config, sets, name)
    from raycl.report.task_check import print_entry, print_samples
    from raycl.sequence.task_check import samples, text_side
    from raycl.tasks.load import load_tasks

    print_entry(known.tasks[names[0]])
    (task,) = load_tasks(names, spec.data)
    print_samples(samples(task, text_side(spec.model, spec.data)[0]))


@app.command()
def check(
    file: File,
    data: DataFlag = None,
    model: ModelFlag = None,
    preset: PresetFlag = "auto",
    allow_code: CodeFlag = None,
    config: ConfigFlag = None,
    sets: SetFlags = None,
) -> None:
    """Check a stream: its form, its data, and how a model reads them. No weights are loaded, nothing is trained.

    Shows counts, labels, lengths in tokens, duplicates and leaks, and three examples of each task, with what trains set off.
    Ends with code 2 if a run would be refused.
    """
    flags = {"data": data, "stream": file, "model": model, "allow_code": allow_code}
    spec, known, names = _opened(flags, preset, config, sets)
    from raycl.report.task_check import print_check
    from raycl.sequence.task_check import check_tasks

    found = check_tasks(names, known, spec)
    print_check(found)
    if found.problems:
        raise typer.Exit(2)


def _opened(
    flags: dict[str, Any], preset: str, config: str | None, sets: list[str] | None, name: str | None = None
) -> tuple[Any, Any, list[str]]:
    """The run spec that holds limits and data, the catalogue, and the canonical names: of one task, or of a whole stream."""
    from raycl.tasks.catalogue import open_catalogue

    known = open_catalogue(flags["stream"])
    names = [entry.name for entry in known.streams[0].tasks] if name is None else [known.require(name)]
    layers = make_layers(config, sets, flags | {"order": ",".join(names)})
    prepare()
    from raycl.sequence.resolve import resolve

    return resolve(preset, [*layers.stack, {"method": {"name": "inc_lora"}}]), known, names
