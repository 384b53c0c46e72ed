"""What MLflow holds after a sequence, read back with MLflow's own client; what happens when MLflow is away."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.events import (
    PlannedStage,
    Routing,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageStart,
)
from raycl.tracking.records import LONGEST_PARAM, flat
from raycl.tracking.runs import Resumed
from raycl.tracking.tracker import Tracker
from tests.kit.tracked import DATA, SPEC, end, finish, first_stage, scores, start, step


@pytest.fixture(scope="module")
def client(uri: str, finished: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="module")
def finished(uri: str, folder: Path) -> Tracker:
    """A sequence recorded from start to end: stage 1 trained, stage 2 from the store."""
    figure = folder / "matrix.png"
    figure.write_bytes(b"a figure")
    tracker = Tracker(uri, "finished", "my run")
    assert start(tracker) == tracker.run_id != ""
    first_stage(tracker)
    tracker.handle(end(2, cached=True, log=(step(2, 1, 0.9), step(2, 3, 0.3))))
    matrix = AccuracyMatrix(SPEC["tasks"])
    scores(tracker, matrix)
    tracker.artifacts = [figure]
    finish(tracker, matrix)
    return tracker


def children(client: Any, tracker: Tracker) -> list[Any]:
    """The stage runs of a sequence, first stage first."""
    experiment = client.get_experiment_by_name(tracker.experiment).experiment_id
    where = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    return sorted(client.search_runs([experiment], where), key=lambda run: run.data.tags["raycl.stage"])


def history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_parent_run(client: Any, finished: Tracker) -> None:
    run = client.get_run(finished.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "my run")
    expected = {"method": "o_lora", "order": "demo", "seed": "3", "model": "packaged", "preset": "smoke", "stages": "2"}
    assert {name: run.data.tags[f"raycl.{name}"] for name in expected} == expected
    assert run.data.params["train.lr"] == "[0.001, 0.0005]"
    assert run.data.params["method.rank"] == "8"
    assert history(client, finished.run_id, "acc/reviews") == [(0, 10.0), (1, 80.0), (2, 70.0)]
    assert history(client, finished.run_id, "acc/plots _long_") == [(0, 20.0), (1, 30.0), (2, 60.0)]
    assert history(client, finished.run_id, "AP") == [(1, 80.0), (2, 65.0)]
    assert [history(client, finished.run_id, name) for name in ("FT", "BWT", "FWT")] == [
        [(2, v)] for v in (10, -10, 10)
    ]


def test_how_a_sequence_is_routed_is_a_metric_of_its_stages(client: Any, uri: str) -> None:
    """Told with its row, and once more at the end, where what was not known before is added."""
    tracker = Tracker(uri, "routed", "run")
    start(tracker)
    tasks = tuple(SPEC["tasks"])
    early, late = (Routing(tasks, ((3, 1), (0, 2)), (0, 0), changed, 70.0) for changed in (float("nan"), 0.25))
    tracker.handle(RowDone(2, {}, {}, early))
    tracker.handle(SequenceEnd("FINISHED", AccuracyMatrix(tasks).to_json(), routing=late))
    assert history(client, tracker.run_id, "routing/accuracy") == [(2, 87.5)]
    assert history(client, tracker.run_id, "routing/oracle_AP") == [(2, 70.0)]
    assert history(client, tracker.run_id, "routing/changed") == [(2, 25.0)]


def test_stage_runs(client: Any, finished: Tracker) -> None:
    trained, cached = children(client, finished)
    assert [run.info.status for run in (trained, cached)] == ["FINISHED", "FINISHED"]
    assert [run.data.tags["raycl.task"] for run in (trained, cached)] == SPEC["tasks"]
    assert [run.data.tags["raycl.cached"] for run in (trained, cached)] == ["false", "true"]
    assert trained.data.tags["raycl.key"] == "a" * 64
    assert trained.data.tags["raycl.health"] == "it limps" and "raycl.health" not in cached.data.tags
    assert trained.data.tags["raycl.method"] == "o_lora"
    assert trained.data.params["steps"] == "3"
    assert [run.data.params["train.lr"] for run in (trained, cached)] == ["0.001", "0.0005"]
    assert (trained.data.params["train_examples"], trained.data.params["test_examples"]) == ("100", "20")
    assert history(client, trained.info.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert history(client, cached.info.run_id, "loss") == [(1, 0.9), (3, 0.3)]
    for run in (trained, cached):
        metrics = run.data.metrics
        assert {f"terms/orthogonal/{kind}" for kind in ("raw", "weighted", "ratio")} <= metrics.keys()
        assert (metrics["gauges/overlap"], metrics["stage/overlap"], metrics["seconds/train"]) == (0.1, 0.2, 4.0)


def test_names_tell_runs_apart_and_name_the_tasks(client: Any, finished: Tracker) -> None:
    """A stage's run has the sequence's name behind its own; each is marked with what was asked for."""
    runs = children(client, finished)
    assert [run.info.run_name for run in runs] == ["01 reviews · my run", "02 plots (long) · my run"]
    assert {run.data.tags["raycl.experiment"] for run in (*runs, client.get_run(finished.run_id))} == {"sequence"}


def test_a_run_says_what_it_is_and_what_made_it(client: Any, finished: Tracker) -> None:
    """Description and source in MLflow's own tags, and the kind by which its pages are chosen."""
    tags = client.get_run(finished.run_id).data.tags
    assert tags["mlflow.note.content"] == (
        "o_lora on packaged, seed 3. Tasks: 1 reviews, 2 plots (long). Device: cpu. Store: /a store."
        " The source differed from its commit."
    )
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert tags["mlflow.source.name"] and tags["mlflow.source.type"] == "LOCAL"
    experiment = client.get_experiment_by_name(finished.experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_data_of_a_run_are_its_inputs(client: Any, uri: str) -> None:
    """Both splits of every task on the sequence, a stage's own training data on its run; none twice after a resume."""
    run_id = None
    for _ in range(2):
        tracker = Tracker(uri, "inputs", "run", Resumed(run_id=run_id))
        run_id = start(tracker)
        tracker.handle(StageStart(2, "plots (long)", 3))
        finish(tracker)

    def inputs(run_id: str) -> list[tuple[str, str, str, int]]:
        found = client.get_run(run_id).inputs.dataset_inputs
        return sorted(
            (one.dataset.name, one.dataset.digest, one.tags[0].value, json.loads(one.dataset.profile)["num_rows"])
            for one in found
        )

    assert inputs(tracker.run_id) == [
        ("plots (long) (test)", "b" * 36, "testing", 20),
        ("plots (long) (train)", "b" * 36, "training", 100),
        ("reviews (test)", "a" * 36, "testing", 20),
        ("reviews (train)", "a" * 36, "training", 100),
    ]
    (stage,) = children(client, tracker)
    assert inputs(stage.info.run_id) == [("plots (long) (train)", "b" * 36, "training", 100)]


def test_a_joint_stage_names_all_its_tasks(client: Any, uri: str) -> None:
    """Its run has the training data of all of them."""
    tracker = Tracker(uri, "joint", "mtl")
    planned = PlannedStage(1, "reviews+plots (long)", "a" * 64, stored=False, train=190, test=0)
    tracker.handle(SequenceStart(SPEC, (planned,), data=DATA))
    tracker.handle(StageStart(1, planned.task, 3))
    finish(tracker)
    (run,) = children(client, tracker)
    assert run.data.params["task"] == run.data.tags["raycl.task"] == planned.task
    assert len(run.inputs.dataset_inputs) == 2


def test_artifacts_lie_beside_the_database(client: Any, finished: Tracker, folder: Path) -> None:
    paths = {file.path for file in client.list_artifacts(finished.run_id)}
    assert paths == {"matrix.png", "spec.json", "tables"}
    stored = folder / "sub" / "mlartifacts" / finished.run_id / "artifacts"
    assert json.loads((stored / "spec.json").read_text()) == SPEC
    assert (stored / "tables" / "accuracy_matrix.csv").read_text().splitlines()[-1] == "2,70.00,60.00"


def test_resume_adds_to_the_same_runs_without_doubling_points(client: Any, uri: str) -> None:
    first = Tracker(uri, "resumed", "run")
    start(first)
    first.handle(StageStart(1, "reviews", 3))
    first.handle(step(1, 1, 1.0))
    first.handle(Scored(0, "reviews", "exact_match", 10.0, 5, 0.1, False))
    finish(first, status="FAILED")
    assert [run.info.status for run in children(client, first)] == ["FAILED"]

    again = Tracker(uri, "resumed", "run", Resumed(run_id=first.run_id))
    assert start(again) == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    first_stage(again)
    matrix = AccuracyMatrix(SPEC["tasks"])
    scores(again, matrix)
    finish(again, matrix)
    (child,) = children(client, again)
    assert [point[0] for point in history(client, child.info.run_id, "loss")] == [1, 2, 3]
    assert [point[0] for point in history(client, again.run_id, "acc/reviews")] == [0, 1, 2]
    assert {run.info.status for run in (child, client.get_run(again.run_id))} == {"FINISHED"}


def test_a_changed_param_is_a_warning_and_keeps_its_first_value(
    client: Any, finished: Tracker, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    again = Tracker(uri, "finished", "my run", Resumed(run_id=finished.run_id))
    start(again, {**SPEC, "seed": 4})
    finish(again)
    assert client.get_run(finished.run_id).data.params["seed"] == "3"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "stay those it was begun with: seed 3 (now 4); spec.json has today's" in message


def test_a_run_or_experiment_that_was_removed_does_not_stop_tracking(client: Any, uri: str) -> None:
    tracker = Tracker(uri, "removed", "run", Resumed(run_id="0" * 32))
    start(tracker)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    finish(tracker, status="KILLED")
    experiment = client.get_experiment_by_name("removed").experiment_id
    client.delete_experiment(experiment)
    again = Tracker(uri, "removed", "run")
    assert client.get_run(start(again)).info.lifecycle_stage == "active"


def test_a_server_that_is_down_costs_one_warning_and_no_error(
    finished: Tracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker("http://127.0.0.1:9", "away", "run")
    with caplog.at_level(logging.WARNING, "raycl"):
        assert start(tracker) == ""
        first_stage(tracker)
        scores(tracker, AccuracyMatrix(SPEC["tasks"]))
        finish(tracker)
    assert tracker.places == {}, "there is nothing to look at"
    assert not tracker.recorded
    assert [("no answer, the run goes on" in r.message, "`raycl sync`" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]


def test_after_an_outage_nothing_is_missing(client: Any, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from raycl.tracking import runs

    def away(*_: Any) -> None:
        raise ConnectionError("refused")

    with monkeypatch.context() as outage:
        outage.setattr(runs, "connect", away)
        tracker = Tracker(uri, "outage", "run")
        assert start(tracker) == ""
        first_stage(tracker)
    matrix = AccuracyMatrix(SPEC["tasks"])
    scores(tracker, matrix)
    finish(tracker, matrix)
    while not tracker.wait():
        pass
    (child,) = children(client, tracker)
    assert [point[0] for point in history(client, child.info.run_id, "loss")] == [1, 2, 3]
    assert history(client, tracker.run_id, "AP") == [(1, 80.0), (2, 65.0)]


def test_two_processes_may_make_one_database_and_experiment_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raycl.events import SequenceStart; from raycl.tracking.tracker import Tracker\n"
        "tracker = Tracker(sys.argv[1], 'shared', 'run'); sys.stdin.readline()\n"
        f"tracker.handle(SequenceStart({SPEC!r}, ()))\n"
        "while not tracker.run_id: time.sleep(0.1)\n"
        "print(tracker.run_id)"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120) for process in running]
    assert [errors for _, errors in results] == ["", ""], "MLflow's and alembic's chatter is silenced"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=command[-1])
    runs = [output.strip() for output, _ in results]
    assert len({client.get_run(run).info.experiment_id for run in runs}) == 1
    assert len(set(runs)) == 2


@pytest.mark.parametrize("name", ["what?", "100% of it", "a%20b", "#1"])
def test_the_database_lies_where_the_home_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder is called: database and artifacts are in it, and MLflow finds the run under the printed URI."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / name))
    tracker = Tracker(None, "odd", "run")
    assert tracker.places == {}, "nothing is recorded yet"
    start(tracker)
    finish(tracker)
    assert (tmp_path / name / "mlflow.db").stat().st_size > 0
    artifacts = tmp_path / name / "mlartifacts" / tracker.run_id / "artifacts"
    assert json.loads((artifacts / "spec.json").read_text()) == SPEC
    uri = shlex.split(tracker.places["MLflow"])[-1]
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_mlflow_is_imported_only_when_a_sequence_starts() -> None:
    code = "import sys, raycl.tracking.tracker as t; t.Tracker('http://host', 'e', 'r'); print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_long_params_are_shown_by_their_hash() -> None:
    params = flat({"short": True, "none": None, "long": {"text": "x" * (LONGEST_PARAM + 1)}})
    assert (params["short"], params["none"]) == ("true", "null")
    assert params["long.text"].startswith("sha256:")
    assert params["long.text"].endswith("(501 characters)")
