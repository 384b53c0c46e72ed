"""`raycl sync`: runs that MLflow did not take while they ran."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raycl.cli.shared import CodeFlag, StoreFlag, TrackingFlag, prepare
from raycl.errors import SpecError, UserError

Runs = Annotated[
    list[str] | None,
    typer.Argument(help="output folders of finished runs  (default: those under ~/.raycl/runs that lack something)"),
]


def sync(
    runs: Runs = None, tracking: TrackingFlag = None, allow_code: CodeFlag = None, store: StoreFlag = None
) -> None:
    """Record finished runs in MLflow that it has not, or not in whole, from what their folders and the store hold.

    Each run is recorded once, however often this is called. Ends with code 2 if MLflow does not take all of them.
    """
    prepare()
    from raycl.tracking.memory import unrecorded
    from raycl.use.heads import find_head
    from raycl.use.sync import record_run, unrecorded_runs

    chosen = [Path(run).expanduser() for run in runs] if runs else unrecorded_runs()
    failed: list[str] = []
    for folder in chosen:
        try:
            head = find_head(str(folder), store, bool(allow_code))
            done = record_run(head, folder, tracking or unrecorded(folder))
        except UserError as error:
            failed.append(f"{folder}: {error}")
            continue
        if not done:
            failed.append(
                f"{folder}: MLflow does not answer, or another process records it; next step: the same again later"
            )
        print(f"{folder}: {'recorded' if done else 'not recorded'}")
    print(f"{len(chosen) - len(failed)} of {len(chosen)} recorded" if chosen else "nothing to record")
    if failed:
        raise SpecError("\n".join(failed))
