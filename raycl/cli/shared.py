"""What the verbs share: their flags, and how flags, file and overrides become the layers of a run spec.

Nothing heavy is imported here, so that every `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Annotated, Any

import typer

from raycl.errors import SpecError, shown
from raycl.files import Json
from raycl.presets import merge, parse_override, read_config

ORDER_HELP = (
    "demo | std-1..3 | long-4..6 | sni-1..2 | 1..6 (AM-LoRA's Table 4) | an order of your stream | task,task,...  "
    "(default: the stream's, or demo)"
)
OrderFlag = Annotated[str | None, typer.Option("--order", help=ORDER_HELP)]
MethodFlag = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="a name that `raycl methods` lists, or a class of your own, package.module:Class, looked for where Python "
        "looks, then in the current folder  (default: gain_lora)",
    ),
]
ModelFlag = Annotated[str | None, typer.Option("--model", help="`packaged`, a local folder, or a hub id")]
DataFlag = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="RAYCL_DATA",
        help="folder in the O-LoRA, GainLoRA or benchmark layout, or `hub`  (default: hub)",
    ),
]
StreamFlag = Annotated[
    str | None, typer.Option("--stream", help="YAML file of a task stream of your own (docs/streams.md)")
]
CodeFlag = Annotated[
    bool | None, typer.Option("--allow-code", help="let the stream name Python functions as metrics; they are run")
]
PresetFlag = Annotated[
    str,
    typer.Option(
        "--preset", help="laptop | paper | demo | auto (paper if the cluster has GPUs; demo for the order demo)"
    ),
]
SeedFlag = Annotated[
    int | None, typer.Option("--seed", help="seed of initialisation, data order and dropout  (default: 0)")
]
StoreFlag = Annotated[
    str | None, typer.Option("--store", help="folder or URI of the stage store  (default: ~/.raycl/store)")
]
ConfigFlag = Annotated[str | None, typer.Option("--config", help="YAML file with run-spec fields")]
SetFlags = Annotated[
    list[str] | None,
    typer.Option("--set", help="any field, e.g. --set method.rank=8; may be repeated; wins over all else"),
]
TrackingFlag = Annotated[
    str | None,
    typer.Option(
        "--tracking", envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI, or off  (default: a file in ~/.raycl)"
    ),
]
CHATTY = (
    "DeepSpeed",
    "ray._private.authentication.authentication_token_setup",
    "torch.utils.cpp_extension",
)
"""Loggers whose warnings tell a user nothing."""
FIELD_OF_FLAG = {
    "order": "order",
    "method": "method.name",
    "model": "model.name",
    "data": "data.source",
    "stream": "data.stream",
    "allow_code": "data.allow_code",
    "seed": "seed",
    "workers": "workers",
    "groups": "groups",
    "eval_workers": "eval.workers",
}
"""Flag -> the run-spec field it sets."""


@dataclass(frozen=True)
class Layers:
    """What the user said, weakest first; below it lie the preset and the method's published settings."""

    file: Json
    """The fields of `--config`."""
    flags: Json
    sets: Json
    """The fields of `--set`."""

    @property
    def stack(self) -> list[Json]:
        """The three as layers for `resolve`."""
        return [self.file, self.flags, self.sets]

    def said(self, field: str) -> Any:
        """The value of a top-level field; none if nobody gave it."""
        return merge(*self.stack).get(field)


def make_layers(config: str | None, sets: list[str] | None, flags: dict[str, Any]) -> Layers:
    """The layers of every command: file < flags < --set. `flags` holds the values of flags; none = not given.

    Raises SpecError for a file that cannot be read or an override that is none.
    """
    given = {flag: value for flag, value in flags.items() if value is not None}
    file = read_config(config) if config else {}
    data = file.get("data")
    if isinstance(data, dict) and data.get("allow_code") and not given.get("allow_code"):
        raise SpecError(
            f"--config {config}: data.allow_code lets Python code run; say so on the command line: --allow-code"
        )
    return Layers(
        file=file,
        flags=merge(*(_nested(FIELD_OF_FLAG[flag], value) for flag, value in given.items())),
        sets=merge(*_overrides(sets or [])),
    )


FLAGS_ONLY = {"preset": "give `--preset NAME`", "tasks": "give `--order task,task,...`"}
"""Fields that --set would set too late, and how they are said."""


def _overrides(sets: list[str]) -> list[Json]:
    """What each --set says. Raises SpecError that lists all that say nothing."""
    found: list[Json] = []
    problems: list[str] = []
    for text in sets:
        try:
            found.append(parse_override(text))
        except SpecError as error:
            problems.append(str(error))
            continue
        problems += [
            f"--set {shown(text)}: {name} decides what the other fields start from; next step: {step}"
            for name, step in FLAGS_ONLY.items()
            if name in found[-1]
        ]
    if problems:
        raise SpecError("\n".join(problems))
    return found


def _nested(field: str, value: Any) -> Json:
    """{"model": {"name": value}} for `model.name`."""
    for name in reversed(field.split(".")):
        value = {name: value}
    return value


def gpus_at_hand(preset: str) -> int:
    """GPUs of the cluster at hand, asked only where the preset depends on them."""
    if preset != "auto":
        return 0
    from raycl.cluster import cluster_gpus

    return cluster_gpus()


def with_flags_of(verb: Callable[..., None], command: Callable[..., None], without: Collection[str] = ()) -> None:
    """Let a command take the flags of another verb, but for those `without`, before its own: its `**flags` are their values.

    typer reads a function's signature, and a list of flags stands in one place only.
    """
    theirs = [one for name, one in signature(verb, eval_str=True).parameters.items() if name not in without]
    own = [one for one in signature(command, eval_str=True).parameters.values() if one.kind is not one.VAR_KEYWORD]
    taken = [*theirs, *own]
    command.__signature__ = Signature(taken)  # pyright: ignore[reportFunctionMemberAccess] -- what `signature` reads first
    command.__annotations__ = {one.name: one.annotation for one in taken} | {"return": None}


def prepare() -> None:
    """Settle what must stand before torch is imported, and keep the libraries quiet; RAYCL_DEBUG=1 lets them speak.

    Threads that wait for each other sleep: by default they spin, and where other programs want the cores as well, a training
    step of two threads then takes six times as long (measured: 39 s against 6 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("RAYCL_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # on a terminal the hub's downloads have bars with the time that is left
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable(logging.INFO)
    for name in CHATTY:
        # A filter, since some set their own level when they are imported.
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
