"""`raycl predictions`: what a run answered, test example by test example."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from raycl.cli.shared import CodeFlag, StoreFlag, prepare

Run = Annotated[
    str, typer.Argument(help="a run's output folder, its name under ~/.raycl/runs, a tag, or a stage's key")
]


def predictions(
    run: Run,
    task: Annotated[str | None, typer.Option("--task", help="whose test examples  (default: the last task's)")] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", min=0, help="after which stage; 0 = untrained  (default: the last one)")
    ] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="only answers that lack something of a full score")] = False,
    most: Annotated[int | None, typer.Option("--most", min=1, help="at most so many  (default: all)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per answer")] = False,
    allow_code: CodeFlag = None,
    store: StoreFlag = None,
) -> None:
    """Show prompt, right answer and prediction of the test examples behind one cell of the accuracy matrix."""
    prepare()
    from raycl.report.answers import print_predictions
    from raycl.use.heads import find_head
    from raycl.use.predictions import predictions as read

    found = read(find_head(run, store, bool(allow_code)), task, stage)
    chosen = [row for row in found if row.wrong or not wrong][:most]
    if as_json:
        for row in chosen:
            print(json.dumps(asdict(row), ensure_ascii=False))
        return
    print_predictions(chosen, len(found))
