"""A sweep's or a comparison's run in MLflow, with its sequences below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.tracking.runs import Resumed
from raycl.tracking.tracker import GroupTracker, Tracker
from tests.kit.tracked import ABOUT, finish, start


def test_a_group_stands_above_its_sequences(uri: str, folder: Path) -> None:
    """A comparison's run, the sequence below it by MLflow's own tag; resumed, it adds a step and is no second run."""
    table = folder / "table.md"
    table.write_text("| a |")
    group = GroupTracker(uri, "groups", "all methods", Resumed(part_of="comparison"))
    run_id = group.start({"orders": ["demo"], "seeds": [0, 1]}, ABOUT)
    sequence = Tracker(uri, "groups", "one", Resumed(parent=run_id, part_of="comparison"))
    start(sequence)
    finish(sequence)
    group.finish({"AP/a b:c": 1.5, "BWT/x": float("nan")}, 1, [table])
    again = GroupTracker(uri, "groups", "all methods", Resumed(run_id=run_id, part_of="comparison"))
    assert again.start({"orders": ["demo"], "seeds": [0, 1]}, ABOUT) == run_id
    again.finish({"AP/a b:c": 2.5}, 2, [table])
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.data.tags["raycl.kind"] == run.data.tags["raycl.experiment"] == "comparison"
    assert run.data.tags["mlflow.note.content"] == "All of it. The source differed from its commit."
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert client.get_run(sequence.run_id).data.tags["raycl.experiment"] == "comparison"
    assert run.data.params["seeds"] == "[0, 1]"
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == {"AP/a b_c"}
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "AP/a b_c")] == [(1, 1.5), (2, 2.5)]
    assert {file.path for file in client.list_artifacts(run_id)} == {"settings.json", "table.md"}
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert [one.info.run_id for one in below] == [sequence.run_id]


def test_a_choice_per_stage_is_a_param(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """The dimensions of a tree have brackets, which MLflow's names do not."""
    group = GroupTracker(uri, "groups", "a tree", Resumed(part_of="sweep"))
    run_id = group.start({"space": {"dimensions": {"method.l1[1]": [0.1, 0.2], "method.l1[2]": [0.1]}}}, ABOUT)
    group.finish({}, 0, [])
    from mlflow import MlflowClient

    params = MlflowClient(tracking_uri=uri).get_run(run_id).data.params
    assert params["space.dimensions.method.l1.1"] == "[0.1, 0.2]"
    assert params["space.dimensions.method.l1.2"] == "[0.1]"
    assert "could not be recorded" not in caplog.text
