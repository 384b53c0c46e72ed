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
from raycl.errors import SpecError
from raycl.events import (
    Dataset,
    Phase,
    PlannedStage,
    RowDone,
    Scored,
    SequenceEnd,
    SequenceStart,
    StageEnd,
    StageStart,
    Status,
    Step,
    Term,
)
from raycl.tracking import outbox
from raycl.tracking.outbox import Outbox
from raycl.tracking.records import LONGEST_PARAM, About, flat
from raycl.tracking.runs import Resumed
from raycl.tracking.server import default_uri, mlflow_ui_command, resolve_uri, sqlite_uri
from raycl.tracking.tracker import GroupTracker, Tracker

SPEC: dict[str, Any] = {
    "order": "demo",
    "tasks": ["reviews", "plots (long)"],
    "model": {"name": "packaged", "precision": "fp32"},
    "method": {"name": "o_lora", "rank": 8},
    "train": {"lr": [0.001, 0.0005], "epochs": 1},
    "seed": 3,
    "preset": "smoke",
}
PLAN = (
    PlannedStage(1, "reviews", "a" * 64, stored=False, train=100, test=20),
    PlannedStage(2, "plots (long)", "b" * 64, stored=True, train=90, test=10),
)


ABOUT = About("All of it.", {"git": {"commit": "c" * 40, "dirty": True}})


def step(stage: int, number: int, loss: float) -> Step:
    """A log record."""
    return Step(stage, number, 3, 0.001, loss, 100.0, {"orthogonal": Term(2.0, 1.0, 0.5)}, {"overlap": 0.1})


def end(stage: int, cached: bool, log: tuple[Step, ...] = ()) -> StageEnd:
    """The end of a stage."""
    planned = PLAN[stage - 1]
    seconds = {"train": 4.0, "pass": 0.0, "evaluation": 1.0, "other": 0.5}
    return StageEnd(stage, planned.task, planned.key, cached, seconds, {"overlap": 0.2}, log)


DATA = tuple(
    Dataset(task, split, digest * 64, rows, {"source": "hub", "licence": "CC"})
    for task, digest in (("reviews", "a"), ("plots (long)", "b"))
    for split, rows in (("train", 100), ("test", 20))
)


def first_stage(tracker: Tracker) -> None:
    """The events of stage 1, trained here."""
    tracker.handle(StageStart(1, "reviews", 3))
    for number in (1, 2, 3):
        tracker.handle(step(1, number, 1.0 / number))
    tracker.handle(Phase(1, "evaluation", 1, 2))
    tracker.handle(end(1, cached=False))


def scores(tracker: Tracker, matrix: AccuracyMatrix) -> None:
    """All scores of the sequence, row by row."""
    for stage, row in enumerate([(10.0, 20.0), (80.0, 30.0), (70.0, 60.0)]):
        for task, score in zip(SPEC["tasks"], row, strict=True):
            matrix.set(stage, task, score)
            tracker.handle(Scored(stage, task, "exact_match", score, 5, 0.1, True))
        if stage:
            tracker.handle(RowDone(stage, matrix.seen(stage), matrix.summary(stage)))


def start(tracker: Tracker, spec: dict[str, Any] = SPEC) -> str:
    """Begin a sequence; the id of its run."""
    tracker.handle(SequenceStart(spec, PLAN, {"device": "cpu", "store": "/a store"}, DATA, ABOUT.environment))
    return tracker.run_id


def finish(tracker: Tracker, matrix: AccuracyMatrix | None = None, status: Status = "FINISHED") -> None:
    """End a sequence."""
    tracker.handle(SequenceEnd(status, (matrix or AccuracyMatrix(SPEC["tasks"])).to_json()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space, as users have them."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'sub' / 'mlflow.db'}"


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


def test_stage_runs(client: Any, finished: Tracker) -> None:
    trained, cached = children(client, finished)
    assert [run.info.status for run in (trained, cached)] == ["FINISHED", "FINISHED"]
    assert [run.data.tags["raycl.task"] for run in (trained, cached)] == SPEC["tasks"]
    assert [run.data.tags["raycl.cached"] for run in (trained, cached)] == ["false", "true"]
    assert trained.data.tags["raycl.key"] == "a" * 64
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
        assert len(caplog.records) == 1
        finish(tracker)
    assert tracker.places == {}, "there is nothing to look at"
    assert [("no answer, the run goes on" in r.message, "are lost" in r.message) for r in caplog.records] == [
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
    (child,) = children(client, tracker)
    assert [point[0] for point in history(client, child.info.run_id, "loss")] == [1, 2, 3]
    assert history(client, tracker.run_id, "AP") == [(1, 80.0), (2, 65.0)]


def test_two_processes_may_make_one_database_and_experiment_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from raycl.events import SequenceStart; from raycl.tracking.tracker import Tracker\n"
        "tracker = Tracker(sys.argv[1], 'shared', 'run'); sys.stdin.readline()\n"
        f"tracker.handle(SequenceStart({SPEC!r}, ())); print(tracker.run_id)"
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


# --- no MLflow from here on ------------------------------------------------------------------------------------------


def test_outbox_keeps_order_through_an_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_SECONDS", 1000.0)
    box = Outbox("service", lambda error: isinstance(error, ConnectionError))
    made: list[int] = []
    tries: list[int] = []
    up = False

    def call(number: int) -> None:
        tries.append(number)
        if not up:
            raise ConnectionError("refused\nwith a long explanation")
        made.append(number)

    for number in range(3):
        box.send(f"call {number}", lambda number=number: call(number))
    assert (made, tries, box.undelivered) == ([], [0] * outbox.ATTEMPTS, 3)
    assert "call 0 waits (ConnectionError: refused)" in caplog.text
    up = True
    box.flush()
    assert made == [], "the pause is not over"
    box.flush(now=True)
    assert (made, box.undelivered) == ([0, 1, 2], 0)
    assert len(caplog.records) == 2


def test_outbox_drops_what_is_refused_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    box = Outbox("service", lambda error: False)
    made: list[str] = []
    box.send("a bad call", lambda: 1 / 0)
    box.send("a good call", lambda: made.append("good"))
    assert made == ["good"]
    assert "service: a bad call could not be recorded (ZeroDivisionError: division by zero)" in caplog.text


def test_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_QUEUED_CALLS", 2)
    monkeypatch.setattr(outbox, "ATTEMPTS", 1)
    box = Outbox("service", lambda error: True)
    for _ in range(5):
        box.send("a call", lambda: 1 / 0)
    assert (box.waiting, box.undelivered) == (2, 5)


def test_long_params_are_shown_by_their_hash() -> None:
    params = flat({"short": True, "none": None, "long": {"text": "x" * (LONGEST_PARAM + 1)}})
    assert (params["short"], params["none"]) == ("true", "null")
    assert params["long.text"].startswith("sha256:")
    assert params["long.text"].endswith("(501 characters)")


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert default_uri() == resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert resolve_uri(None) == "http://server"
    with pytest.raises(SpecError, match="sqlite:///<file>"):
        resolve_uri("./mlruns")


@pytest.mark.parametrize(
    ("path", "quoted"),
    [("/a b/é#x/m.db", "/a b/é#x/m.db"), ("/a?b/m.db", "/a%3Fb/m.db"), ("/100%/a%20b/m.db", "/100%25/a%2520b/m.db")],
)
def test_a_path_is_quoted_where_a_uri_would_take_it_for_its_own(path: str, quoted: str) -> None:
    """And only there; what is quoted is not quoted again, and a query stays."""
    assert sqlite_uri(Path(path)) == f"sqlite:///{quoted}"
    assert resolve_uri(f"sqlite:///{quoted}") == f"sqlite:///{quoted}"
    assert resolve_uri(f"sqlite:///{quoted}?timeout=5") == f"sqlite:///{quoted}?timeout=5"


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


def test_ui_command() -> None:
    assert mlflow_ui_command("sqlite:////a b/mlflow.db") == "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert mlflow_ui_command("http://host:5000") == "python -m webbrowser http://host:5000"


def test_mlflow_is_imported_only_when_a_sequence_starts() -> None:
    code = "import sys, raycl.tracking.tracker as t; t.Tracker('http://host', 'e', 'r'); print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


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
