"""A whole sweep without Ray: Tune's place is taken by a loop in this process. Record, outputs, MLflow, interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from rich.console import Console

from raycl.errors import SpecError
from raycl.report.sweeps import SweepTerminal
from raycl.sequence.driver import Options
from raycl.state.store import Store
from raycl.sweep import tune as tune_host
from raycl.sweep.events import TrialEnd, TrialEvent, TrialStage, TrialStart
from raycl.sweep.plan import SweepPlan, SweepRequest, SweepSettings
from raycl.sweep.run import SweepResult, run_sweep
from raycl.sweep.trials import note_of, open_trial
from tests.kit.runs import MakeFlags, assert_same_part, digests

SPACE = 'BASE = {"method.name": "o_lora"}\nSPACE = {"method.lambda1": [0.1, 0.5, 5.0], "method.rank": [2, 3]}\n'


class Stop(Exception):
    """Stands for whatever ends a driver."""


class Loop:
    """Runs trials one after another; ends early where it is told to, as a scheduler or a kill would."""

    def __init__(self) -> None:
        self.stages: dict[int, int] = {}
        """Trial -> stages after which it is ended."""
        self.dies_after: int | None = None
        """Number of stages after which the driver ends."""
        self.ended: set[str] = set()

    def __call__(self, plan: SweepPlan, folder: str, handle: Callable[[TrialEvent], None]) -> None:
        """What `run_trials` does."""
        self.plan = plan
        done = 0
        for number, point in enumerate(plan.points or plan.space.samples()[: plan.trials], start=1):
            name = f"t{number}"
            if name in self.ended:
                continue
            handle(TrialStart(name, point))
            stepper = open_trial(plan.trial, point, plan.tasks, plan.packs)
            while not stepper.finished and stepper.done < self.stages.get(number, 99):
                row = stepper.step()
                handle(TrialStage(name, point, row.stage, row.trained, "", note_of(stepper)))
                done += 1
                if done == self.dies_after:
                    raise Stop
            self.ended.add(name)
            handle(TrialEnd(name, point, ""))


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """The loop in Tune's place."""
    one = Loop()
    monkeypatch.setattr(tune_host, "run_trials", one)
    monkeypatch.setattr(tune_host, "trials_at_once", lambda plan: 1)
    return one


@pytest.fixture
def sweep(flags: MakeFlags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., SweepResult]:
    """Runs the sweep of SPACE over two tasks."""
    fields = {name: value for name, value in flags.spec("o_lora", "llama").items() if name not in ("workers", "method")}
    layers = [{"order": "roget,snippets"}, fields]
    options = Options(str(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}", "raycl", str(tmp_path / "output"))

    def run(resume: bool = False, space: str = SPACE, **settings: object) -> SweepResult:
        (tmp_path / "space.py").write_text(space)
        chosen = SweepSettings(space=str(tmp_path / "space.py"), **settings)
        terminal = SweepTerminal(Console(width=140, highlight=False))
        return run_sweep(SweepRequest(chosen, "laptop", layers, resume=resume), options, terminal)

    return run


def test_a_sweep_is_recorded_shown_and_written(
    loop: Loop, sweep: Callable[..., SweepResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six trials over two tasks: two different first stages, six second ones; one trial is ended after stage 1."""
    loop.stages = {3: 1}
    result = sweep()
    out = capsys.readouterr().out
    assert "Sweep: 6 trials x 2 stages, grid, scheduler asha, 1 at once" in out
    assert re.search(rf"^store +{re.escape(str(tmp_path / 'store'))}$", out, flags=re.MULTILINE)
    assert re.search(r"^varied +method.lambda1, method.rank$", out, flags=re.MULTILINE)
    assert "Stage runs: 12 needed, 8 distinct, 0 in the store, 8 to train" in out
    assert "Stage runs: 11 needed, 7 trained, 4 shared between trials, 0 stored before; 4 saved" in out
    record = result.record
    assert [trial.status for trial in record.trials].count("stopped") == 1
    assert record.ranked()[-1].number == 3
    trained = [row["key"] for trial in record.trials for row in trial.rows if row["trained"]]
    assert sorted(trained) == sorted(Store(str(tmp_path / "store")).stage_keys())
    assert {"sweep.json", "sweep.csv", "best.yaml", "report.html"} == set(result.outputs)
    assert all(path.is_file() for path in result.outputs.values())
    assert (tmp_path / "output" / "sweep.csv").read_text().startswith("rank,trial,method.lambda1,method.rank,AP,FT,")
    check_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", record.run_id, record.trials)


def check_mlflow(uri: str, run_id: str, trials: list[Any]) -> None:
    """Sweep above sequences above stages, every curve whole and no run twice."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    experiment = [parent.info.experiment_id]
    below = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {run.info.run_id for run in below} == {trial.run_id for trial in trials}
    names = {run.info.run_id: run.info.run_name for run in below}
    for trial in trials:
        settings = f"method.lambda1={trial.params['method.lambda1']}, method.rank={trial.params['method.rank']}"
        assert names[trial.run_id].startswith(f"trial {trial.number:03d} ({settings}) · ")
    assert parent.info.run_name.startswith("Sweep of ")
    assert {run.data.tags["raycl.experiment"] for run in (parent, *below)} == {"sweep"}
    for trial in trials:
        points = client.get_metric_history(trial.run_id, "AP")
        assert [point.value for point in points] == [row["AP"] for row in trial.rows]
        stages = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{trial.run_id}'")
        assert sorted(int(stage.data.tags["raycl.stage"]) for stage in stages) == list(range(1, len(trial.rows) + 1))


def test_siblings_are_trained_at_once_and_come_out_as_one_by_one(
    loop: Loop, sweep: Callable[..., SweepResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two first stages, and three children of each: three packs, each trained by the first trial that comes to it."""
    result = sweep(pack=3)
    out = capsys.readouterr().out
    assert re.search("^packed +up to 3 stages of one parent at once$", out, flags=re.MULTILINE)
    assert "Stage runs: 12 needed, 8 trained, 4 shared between trials, 0 stored before; 4 saved" in out
    packed, one_by_one = Store(str(tmp_path / "store")), Store(str(tmp_path / "alone"))
    for point in loop.plan.points or ():
        alone = open_trial(loop.plan.trial.model_copy(update={"store": one_by_one.uri}), point, loop.plan.tasks)
        while not alone.finished:
            alone.step()
    assert packed.stage_keys() == one_by_one.stage_keys() and len(packed.stage_keys()) == 8
    sizes = [packed.manifest(key).runtime["packed"] for key in packed.stage_keys()]
    assert sorted(sizes) == [2] * 2 + [3] * 6
    assert "packed" not in one_by_one.manifest(packed.stage_keys()[0]).runtime
    for key in packed.stage_keys():
        assert_same_part(packed.read_state(key).newest, one_by_one.read_state(key).newest, 1e-5)
    assert sum(row["trained"] for trial in result.record.trials for row in trial.rows) == 3
    assert [trial.status for trial in result.record.trials] == ["finished"] * 6


def test_what_cannot_be_packed_is_trained_one_by_one_and_said_once(
    loop: Loop, sweep: Callable[..., SweepResult], capsys: pytest.CaptureFixture[str]
) -> None:
    """All weights of the model train."""
    result = sweep(space='BASE = {"method.name": "seq_ft"}\nSPACE = {"train.max_grad_norm": [1.0, 2.0]}\n', pack=2)
    out = capsys.readouterr().out
    assert out.count("Stages are trained one by one: the base model's own weights train, such as ") == 1
    assert all(row["trained"] for trial in result.record.trials for row in trial.rows)


def test_an_interrupted_sweep_goes_on_where_it_was(
    loop: Loop, sweep: Callable[..., SweepResult], tmp_path: Path
) -> None:
    """The driver dies after five stages: what is finished stays as it is, the same runs go on in MLflow."""
    loop.dies_after = 5
    with pytest.raises(Stop):
        sweep()
    before = json.loads((tmp_path / "output" / "sweep.json").read_text())
    kept = digests(tmp_path / "store")
    assert [trial["status"] for trial in before["trials"]] == ["finished", "finished", "running"]
    loop.dies_after = None
    record = sweep(resume=True).record
    assert [trial.status for trial in record.trials] == ["finished"] * 6
    assert record.run_id == before["run_id"]
    assert record.tune == before["tune"]
    assert [trial.run_id for trial in record.trials[:3]] == [trial["run_id"] for trial in before["trials"]]
    assert kept.items() <= digests(tmp_path / "store").items()
    assert record.sharing.to_json()["trained"] == 8
    check_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", record.run_id, record.trials)
    with pytest.raises(SpecError, match=r"holds another sweep \(other scheduler\)"):
        sweep(resume=True, scheduler="none")


def test_a_sweep_is_not_taken_up_by_another_optuna(
    loop: Loop, sweep: Callable[..., SweepResult], tmp_path: Path
) -> None:
    """The record holds the version; another major one, or a record that does not say, is refused with the way out."""
    loop.dies_after = 1
    with pytest.raises(Stop):
        sweep(search="optuna", trials=1)
    path = tmp_path / "output" / "sweep.json"
    record = json.loads(path.read_text())
    assert record["optuna"] == version("optuna")
    for kept, words in (("4.9.0", "begun with Optuna 4.9.0"), ("", "begun with Optuna of an unknown version")):
        path.write_text(json.dumps(record | {"optuna": kept}))
        with pytest.raises(SpecError, match=words):
            sweep(resume=True, search="optuna", trials=1)
    path.write_text(json.dumps(record))
    loop.dies_after = None
    assert [trial.status for trial in sweep(resume=True, search="optuna", trials=1).record.trials] == ["finished"]
