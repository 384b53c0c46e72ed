"""`raycl store`: what a store holds, and whether it can be trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raycl.cli.shared import StoreFlag
from raycl.errors import StoreError
from raycl.files import home

if TYPE_CHECKING:
    from raycl.state.store import Store

app = typer.Typer(help="Look into a stage store: list its stages, show one, check them all.", no_args_is_help=True)
SHORTEST_PREFIX = 4
"""Digits of a key that must be given at least."""


@app.command("ls")
def list_stages(store: StoreFlag = None) -> None:
    """List the stages: key, stage, task, method, size, when it was made."""
    from raycl.report.terminal import print_stages

    opened = _opened(store)
    print_stages([opened.manifest(key) for key in opened.stage_keys()])


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="a stage's key, or its first digits")], store: StoreFlag = None
) -> None:
    """Show a stage's manifest: recipe, parent, files, facts, environment, how long it took; not its log."""
    opened = _opened(store)
    found = _whole_key(key, opened)
    manifest = opened.manifest(found).model_dump(exclude={"log"})
    print(json.dumps(manifest | {"content": opened.folder(found)}, indent=2, ensure_ascii=False))


@app.command()
def verify(store: StoreFlag = None) -> None:
    """Read every stage and every score, and check sizes, hashes and parents. Exit code 2 if any cannot be trusted."""
    opened = _opened(store)
    problems = opened.verify()
    if problems:
        raise StoreError("\n".join([f"{len(problems)} entries of {opened.uri} cannot be trusted:", *problems]))
    print(f"{opened.uri}: {len(opened.stage_keys())} stages, every file is what was written")


def _opened(uri: str | None) -> Store:
    """A store that exists; looking never makes one."""
    from raycl.state.store import Store

    opened = Store(uri or str(home() / "store"))
    if not opened.exists():
        raise StoreError(f"--store {opened.uri}: there is no store; `raycl run` makes one, or give another place")
    return opened


def _whole_key(prefix: str, store: Store) -> str:
    """The one stage whose key starts with `prefix`."""
    found = [key for key in store.stage_keys() if key.startswith(prefix)]
    if len(prefix) < SHORTEST_PREFIX or len(found) != 1:
        raise StoreError(
            f"key {prefix!r}: {len(found)} stages of {store.uri} start so; give at least {SHORTEST_PREFIX} digits of one "
            "that `raycl store ls` shows"
        )
    return found[0]
