"""`raycl methods`: what methods there are, and the skeleton of one's own."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(invoke_without_command=True)
Named = Annotated[
    list[str] | None,
    typer.Option("--method", help="list a class of your own as well: package.module:Class; may be repeated"),
]


@app.callback()
def methods(context: typer.Context, method: Named = None) -> None:
    """List the methods: paper, what they train, how the state grows, what they need. `new` begins one of your own.

    Methods of installed packages stand at the end, each with its package.
    """
    if context.invoked_subcommand is None:
        from raycl.report.lists import print_methods

        print_methods(named=method or ())


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the method's name: lower-case letters, digits and _")],
    folder: Annotated[str, typer.Option("--folder", help="where the method's folder is made")] = ".",
) -> None:
    """Write a working method with its tests into a folder of your own, to be changed from there."""
    from raycl.skeleton.write import new_method

    home = new_method(name, folder)
    print(f"{home} holds the method, its tests, and a README with the commands")
