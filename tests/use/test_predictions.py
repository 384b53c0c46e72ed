"""`raycl predictions`: what stands behind a cell of the accuracy matrix."""

from __future__ import annotations

import json

from raycl.use.heads import find_head
from raycl.use.predictions import predictions
from tests.kit.cli import invoke
from tests.kit.trained import Trained, stored


def test_the_answers_are_those_that_were_scored(trained: Trained) -> None:
    """All of the last row, and their mean is the cell's score."""
    folder = trained("o_lora")
    head = find_head(str(folder))
    rows = predictions(head, "roget")
    assert [row.prediction for row in rows] == stored(folder, "roget") and rows
    matrix = json.loads((folder / "matrix.json").read_text())
    assert sum(row.score for row in rows) / len(rows) == matrix["rows"][2][0]


def test_as_json_and_on_the_terminal(trained: Trained) -> None:
    """`--wrong` leaves out full scores, `--most` cuts, and the last task and stage are what is shown unless said."""
    folder = trained("o_lora")
    given = [str(folder), "--task", "roget", "--stage", "1"]
    lines = [json.loads(line) for line in invoke("predictions", [*given, "--json"]).stdout.splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5, 6] and all(
        "Entry:" in line["prompt"] for line in lines
    )
    wrong = [json.loads(line) for line in invoke("predictions", [*given, "--json", "--wrong"]).stdout.splitlines()]
    assert wrong == [line for line in lines if line["score"] < 100]
    shown = invoke("predictions", [*given, "--most", "1"])
    assert shown.code == 0 and shown.stdout.startswith("1 of 6  score ") and "right" in shown.stdout
    last = invoke("predictions", [str(folder), "--json", "--most", "1"])
    assert json.loads(last.stdout)["prediction"] == stored(folder, "snippets")[0]


def test_a_stages_key_alone_does_not_say_the_data(trained: Trained) -> None:
    """And the message says what does."""
    head = find_head(str(trained("o_lora")))
    done = invoke("predictions", [head.last, "--store", head.store.uri])
    assert done.code == 2 and "name the run, with @N behind it" in done.stderr
    assert invoke("predictions", [f"{trained('o_lora')}@1", "--task", "roget", "--json"]).code == 0


def test_a_cell_that_was_not_scored_is_refused_with_those_that_were(trained: Trained) -> None:
    """The task of stage 2 after stage 1, and a task of nobody's."""
    for given in (["--task", "snippets", "--stage", "1"], ["--task", "nothing"], ["--stage", "9"]):
        done = invoke("predictions", [str(trained("o_lora")), *given])
        assert done.code == 2 and "was not scored" in done.stderr and "roget after 1" in done.stderr
