"""`raycl data`: copies of hub data, to run without the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raycl.cli.shared import StreamFlag, prepare
from raycl.errors import SpecError
from raycl.files import Json

app = typer.Typer(help="Fetch the data of hub tasks into a folder.", no_args_is_help=True)


@app.command()
def fetch(
    tasks: Annotated[
        str | None, typer.Argument(help="an order or task,task,...  (default: all tasks of --stream)")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="folder for the copies; earlier ones in it stay")] = "data",
    stream: StreamFlag = None,
    seed: Annotated[int, typer.Option(help="seed of the draw of published tasks, as data.seed")] = 42,
) -> None:
    """Copy hub data into a folder: rows as JSON lines, with counts and SHA-256 in manifest.json.

    Published tasks are then read with `--data FOLDER`; of a stream of your own, a copy that reads the folder is written too.
    """
    if tasks is None and stream is None:
        raise SpecError(
            "raycl data fetch: name tasks or an order, such as `raycl data fetch std-1`, or give --stream FILE"
        )
    prepare()
    from raycl.tasks.catalogue import open_catalogue
    from raycl.tasks.fetch import fetch as fetch_tasks
    from raycl.tasks.fetch import local_stream, on_hub
    from raycl.tasks.orders import resolve_order

    known = open_catalogue(stream)
    names = [entry.name for entry in known.streams[0].tasks] if tasks is None else resolve_order(tasks, stream)[1]
    entries = [known.tasks[name] for name in names]
    if elsewhere := [entry.name for entry in entries if not on_hub(entry)]:
        print(f"not on the hub, left out: {', '.join(elsewhere)}")
    fetch_tasks(entries, Path(to), seed, _say)
    if stream is not None:
        copy = local_stream(Path(stream), known.streams[0].tasks, names, Path(to))
        print(f"raycl run --stream {copy}")


def _say(name: str, record: Json) -> None:
    for file, facts in record["files"].items():
        print(f"{name}: {file}  {facts['rows']:,} rows  sha256 {facts['sha256'][:12]}")
