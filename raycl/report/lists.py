"""Lists that commands print: the stages of a store, the methods there are."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raycl.errors import SpecError, shown
from raycl.methods.outside import installed
from raycl.methods.registry import METHODS, short_name
from raycl.report.terminal import standard_output
from raycl.state.manifest import Manifest


def print_stages(manifests: Sequence[Manifest], console: Console | None = None) -> None:
    """The stages of a store, in the order of their making."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("key", "stage", "task", "method", "KiB", "made (UTC)"):
        table.add_column(name, justify="right" if name in ("stage", "KiB") else "left", no_wrap=True)
    for one in sorted(manifests, key=lambda manifest: manifest.created):
        size = sum(file.bytes for file in one.files.values()) / 1024
        method = str(one.recipe.get("method", {}).get("name", "?"))
        words = [one.key[:12], str(one.stage), Text(one.task), Text(short_name(method)), f"{size:,.0f}"]
        table.add_row(*words, one.created[:19])
    (console or standard_output()).print(table)


def print_methods(console: Console | None = None, named: Sequence[str] = ()) -> None:
    """The list of all methods, a block each so that it fits any width: raycl's own, those of installed packages, and the
    classes of the user's that are `named`.

    One that cannot be used is shown with the reason. Raises SpecError for a named one.
    """
    from raycl.report.cards import line

    console = console or standard_output()
    packages = installed()
    for name in dict.fromkeys([*METHODS, *sorted(packages)]):
        origin = " and ".join(f"{one.package} ({one.place})" for one in packages.get(name, []))
        try:
            _print_method(console, line(name), origin)
        except ValueError as error:
            console.print(f"[bold]{escape(name)}[/bold]  cannot be used: {escape(str(error))}", soft_wrap=True)
    for name in named:
        try:
            _print_method(console, line(name))
        except ValueError as error:
            raise SpecError(f"--method {shown(name)}: {error}") from None


def _print_method(console: Console, row: Sequence[str], origin: str = "") -> None:
    """A method's block; `origin` is the package that it comes from."""
    name, title, paper, trains, growth, task_id, replays = row
    console.print(f"[bold]{escape(name)}[/bold]  {escape(title)}", soft_wrap=True)
    lines = {
        "paper": paper,
        "trains": trains,
        "state grows by": growth,
        "task id at test": task_id,
        "replays": replays,
        "package": origin,
    }
    for label, text in lines.items():
        if text:
            console.print(f"    {label + ':':<17}{escape(text)}", soft_wrap=True)
