"""The command line of `jobs/sequence.py`: flags to layers of a spec, errors to one message and exit code 2.

Nothing heavy is imported before the flags are read, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from raycl.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Order = Annotated[
    str, typer.Option(help="demo | std-1..3 | long-4..6 | sni-1..2 | 1..6 (AM-LoRA's Table 4) | task,task,...")
]
Method = Annotated[str | None, typer.Option(help="a name that `python -m raycl methods` lists  [default: gain_lora]")]
Model = Annotated[str | None, typer.Option(help="`packaged`, a local folder, or a hub id")]
Data = Annotated[
    str | None,
    typer.Option(
        envvar="RAYCL_DATA", help="folder in the O-LoRA, GainLoRA or benchmark layout, or `hub`  [default: hub]"
    ),
]
Preset = Annotated[str, typer.Option(help="laptop | paper | auto (paper if the cluster has GPUs)")]
Seed = Annotated[int | None, typer.Option(help="seed of initialisation, data order and dropout  [default: 0]")]
Workers = Annotated[
    int | None, typer.Option(help="Ray Train workers; 0 = in this process  [default: one per GPU, or one on CPU]")
]
StoreOption = Annotated[str | None, typer.Option(help="folder or URI of the stage store  [default: ~/.raycl/store]")]
Config = Annotated[str | None, typer.Option(help="YAML file with run-spec fields")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="any field, e.g. --set method.rank=8; may be repeated")]
Tracking = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI  [default: local]")
]
Output = Annotated[str | None, typer.Option(help="folder for matrix, plots and spec  [default: under ~/.raycl/runs]")]
Fields = Annotated[bool, typer.Option("--fields", help="list every field of the run spec with its meaning, and exit")]


tools = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help="What raycl knows."
)


@tools.command()
def methods() -> None:
    """List the methods: paper, what they train, how the state grows, what they need."""
    from raycl.report.terminal import print_methods

    print_methods()


@tools.command()
def cards(
    folder: Annotated[str, typer.Argument(help="where to write the pages")] = "docs/methods",
    results: Annotated[str, typer.Option(help="measured cells")] = "benchmarks/results/quality",
) -> None:
    """Write a page about every method."""
    from pathlib import Path

    from raycl.report.cards import write_cards

    write_cards(Path(folder), Path(results))


@tools.command()
def reproductions(
    page: Annotated[str, typer.Argument(help="where to write the page")] = "docs/reproductions.md",
    results: Annotated[str, typer.Option(help="reports that are kept")] = "benchmarks/results/reproductions",
) -> None:
    """Write the page that says which published tables and figures were run, and at what scale."""
    from pathlib import Path

    from raycl.reproduction.status import write_status

    write_status(Path(page), Path(results))


@app.command()
def sequence(
    order: Order = "demo",
    method: Method = None,
    model: Model = None,
    data: Data = None,
    preset: Preset = "auto",
    seed: Seed = None,
    workers: Workers = None,
    store: StoreOption = None,
    config: Config = None,
    sets: Sets = None,
    tracking: Tracking = None,
    output: Output = None,
    fields: Fields = False,
) -> None:
    """Train one model on a sequence of tasks, one after another, and show how much it keeps.

    Finished stages are kept in the store: the same command again continues where it stopped, and a finished sequence
    answers in seconds.
    """
    flags = {"method": method, "model": model, "source": data, "seed": seed, "workers": workers}
    if fields:
        return guarded(lambda: _print_fields(method or "gain_lora"))
    return guarded(lambda: _run(order, flags, preset, config, sets or [], store, tracking, output))


def guarded(action: Callable[[], None]) -> None:
    """Run an action; a UserError becomes its message and exit code 2, an interrupt exit code 130."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("interrupted: finished stages are in the store; the same command continues from there", file=sys.stderr)
        raise typer.Exit(130) from None


def _run(
    order: str,
    flags: dict[str, Any],
    preset: str,
    config: str | None,
    sets: list[str],
    store: str | None,
    tracking: str | None,
    output: str | None,
) -> None:
    from raycl.presets import parse_override, read_config

    layers = [{"order": order}, read_config(config) if config else {}, flag_layer(flags)]
    layers += [parse_override(text) for text in sets]
    quiet()
    from raycl.report.terminal import Terminal
    from raycl.sequence.driver import Options, run_sequence
    from raycl.sequence.resolve import resolve

    spec = resolve(preset, layers, _gpus(preset))
    run_sequence(spec, Options(store, tracking, "raycl", output), Terminal())


def flag_layer(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as run-spec fields."""
    nested = {"method": "name", "model": "name", "source": "source"}
    layer: dict[str, Any] = {}
    for flag, value in flags.items():
        if value is not None:
            layer["data" if flag == "source" else flag] = {nested[flag]: value} if flag in nested else value
    return layer


def _gpus(preset: str) -> int:
    """GPUs at hand, asked only where the preset depends on them."""
    if preset != "auto":
        return 0
    from raycl.cluster import cluster_gpus

    return cluster_gpus()


def quiet() -> None:
    """Keep the libraries' banners and progress bars out of the way; RAYCL_DEBUG=1 lets them speak."""
    if os.environ.get("RAYCL_DEBUG"):
        return
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable(logging.INFO)
    for chatty in ("ray._private.authentication.authentication_token_setup", "torch.utils.cpp_extension"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _print_fields(method: str) -> None:
    """Every field with its default, meaning and allowed values."""
    from raycl.errors import SpecError
    from raycl.report.fields import field_table

    try:
        print(field_table(method))
    except ValueError as error:
        raise SpecError(f"--method {method!r}: {error}") from None
