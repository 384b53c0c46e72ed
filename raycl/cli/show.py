"""The verbs that only show something: fields, version, and the pages made from code."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from raycl import __version__
from raycl.errors import SpecError, shown

LIBRARIES = ("torch", "ray", "deepspeed", "peft", "transformers", "mlflow", "optuna")
"""Whose versions a report of a defect should name."""


def fields(
    method: Annotated[str, typer.Argument(help="whose hyper-parameters to list")] = "gain_lora",
    preset: Annotated[str, typer.Option(help="laptop | paper | demo: also show what this preset sets a field to")] = "",
) -> None:
    """List every field of a run spec with its meaning, its allowed values, its default and a preset's value."""
    from raycl.report.fields import field_table
    from raycl.sequence.resolve import preset_layer

    try:
        print(field_table(method, preset, preset_layer(preset, method) if preset else None))
    except ValueError as error:
        raise SpecError(f"method {shown(method)}: {error}") from None


def version() -> None:
    """Show the versions of raycl, Python and the libraries that results depend on, and the accelerator at hand."""
    from raycl.models.precision import accelerator

    lines = {"raycl": __version__, "python": platform.python_version()}
    lines |= {name: _version_of(name) for name in LIBRARIES}
    lines["accelerator"] = accelerator()
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def _version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def cards(
    folder: Annotated[str, typer.Argument(help="where to write the pages")] = "docs/methods",
    results: Annotated[str, typer.Option(help="measured cells")] = "benchmarks/results/quality",
) -> None:
    """Write a page about every method."""
    from raycl.report.cards import write_cards

    write_cards(Path(folder), Path(results))


def reproductions(
    page: Annotated[str, typer.Argument(help="where to write the page")] = "docs/reproductions.md",
    results: Annotated[str, typer.Option(help="reports that are kept")] = "benchmarks/results/reproductions",
) -> None:
    """Write the page that says which published tables and figures were run, and at what scale."""
    from raycl.reproduction.status import write_status

    write_status(Path(page), Path(results))
