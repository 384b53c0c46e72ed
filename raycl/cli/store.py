"""`raycl store`: what a store holds, and whether it can be trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raycl.cli.shared import CodeFlag, StoreFlag, prepare
from raycl.errors import StoreError, UserError, shown
from raycl.files import home

if TYPE_CHECKING:
    from raycl.state.store import Store

app = typer.Typer(help="Look into a stage store: list its stages, show one, check them all.", no_args_is_help=True)
SHORTEST_PREFIX = 4
"""Digits of a key that must be given at least."""


@app.command("ls")
def list_stages(store: StoreFlag = None) -> None:
    """List the stages: key, stage, task, method, size, when it was made."""
    from raycl.report.lists import print_stages

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


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="a run's output folder, its name under ~/.raycl/runs, or a tag")],
    share: Annotated[float, typer.Option("--share", help="how many of its stages, 0 to 1; at least one is")] = 0.01,
    seed: Annotated[int, typer.Option("--seed", help="of the draw of stages")] = 0,
    allow_code: CodeFlag = None,
    store: StoreFlag = None,
) -> None:
    """Train a random share of a run's stages again, and compare them with what is stored. Exit code 2 if one differs.

    The store is not touched. On other hardware, libraries or numbers of threads the last bits may differ; what was different
    is said.
    """
    prepare()
    from raycl.use.audit import audit as examine
    from raycl.use.heads import find_head

    differ = 0
    for one in examine(find_head(run, store, bool(allow_code)), share, seed):
        result = f"differs in {', '.join(one.differs)} ({one.surroundings})" if one.differs else "the same, bit for bit"
        print(f"stage {one.stage} {one.task} {one.key[:12]}: {result}")
        differ += bool(one.differs)
    if differ:
        raise StoreError(f"{run}: {differ} stages came out otherwise; the stored ones stay as they are")


@app.command()
def repair(store: StoreFlag = None) -> None:
    """Set damaged entries aside (under `aside/`, nothing is deleted) and restore a damaged raycl-store.json; then say how to
    make again what is lost."""
    from raycl.state.root import MARKER
    from raycl.state.upkeep import repair as mend
    from raycl.use.heads import runs_with

    uri = _place(store)
    mended, found = mend(uri)
    if mended:
        print(f"{MARKER} was written anew")
    for one in found:
        print(f"{one.room} {one.key[:12]} is set aside: {UserError(one.problem)}")
    if not found:
        print("every stage and every row of scores is what was written")
    for folder in runs_with({one.key for one in found if one.room == "stages"}):
        print(f"to make it again: raycl run --config {folder / 'spec.json'} --store {uri}")
    if any(one.room == "scores" for one in found):
        print("scores are made again by the run that they belong to: give its command once more")


@app.command()
def gc(
    store: StoreFlag = None,
    days: Annotated[float, typer.Option("--older-than", min=0, help="days; what is younger stays")] = 30.0,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="a run's output folder, a tag or a key that stays; repeat it")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="delete it; without this it is only shown")] = False,
) -> None:
    """Show, and with --delete remove, old stages that no tag and no run under ~/.raycl/runs needs. Scores stay.

    Runs whose output lies elsewhere are not known: name them with --keep. Nothing is deleted while a run is at work.
    """
    from raycl.state.upkeep import discard, leftovers
    from raycl.use.heads import find_head, noted_stages

    opened = _opened(store)
    needed = {*noted_stages(), *(key for name in keep or [] for key in find_head(name, opened.uri).stages)}
    found = leftovers(opened, needed, days)
    for one in found:
        print(f"{one.room} {one.key[:12]}  {one.bytes / 1e6:,.1f} MB  {one.about}")
    total = f"{len(found)} entries, {sum(one.bytes for one in found) / 1e6:,.1f} MB"
    if delete:
        discard(opened.uri, found)
    print(f"{total} deleted" if delete else f"{total}, nothing was deleted; --delete does it")


@app.command()
def du(store: StoreFlag = None) -> None:
    """Show how much the store holds, folder by folder."""
    from raycl.state.upkeep import sizes

    opened = _opened(store)
    found = sizes(opened.uri)
    for one in found:
        print(f"{one.room:9}  {one.entries:7,} entries  {one.files:8,} files  {one.bytes / 1e6:12,.1f} MB")
    files, size = sum(one.files for one in found), sum(one.bytes for one in found)
    print(f"{'all':9}  {'':15}  {files:8,} files  {size / 1e6:12,.1f} MB")


def _place(uri: str | None) -> str:
    """A place that holds a store, even if its marker is lost. Raises StoreError for one that holds nothing."""
    from raycl.state.files import Files

    files = Files(uri or str(home() / "store"))
    if not files.names():
        raise StoreError(f"--store {files.uri()}: there is no store; `raycl run` makes one, or give another place")
    return files.uri()


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
            f"key {shown(prefix)}: {len(found)} stages of {store.uri} start so; give at least {SHORTEST_PREFIX} "
            f"digits of one "
            "that `raycl store ls` shows"
        )
    return found[0]
