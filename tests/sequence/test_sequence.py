"""Whole sequences on tiny models in this process (local mode): what they leave, reruns, rivals, damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from raycl.state.store import Store
from raycl.tasks.catalogue import open_catalogue
from tests.kit.commands import Commands, Finished
from tests.kit.runs import MakeFlags, digests

TASKS = open_catalogue().orders["demo"]


@dataclass(frozen=True)
class Ended:
    """A finished sequence: the command that made it, what it wrote."""

    arguments: list[str]
    done: Finished
    folder: Path

    @property
    def store(self) -> Store:
        """The store with its stages."""
        return Store(str(self.folder / "store"))

    @property
    def output(self) -> Path:
        """The folder with matrix, figures and spec."""
        return next(self.folder.glob("output-*"))


@pytest.fixture(scope="module")
def ended(commands: Commands, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The demo's four tasks with GainLoRA over O-LoRA, MLflow and figures included."""
    folder = tmp_path_factory.mktemp("ended")
    arguments = flags(folder / "store", "gain_o", "llama")
    done = commands.run(arguments, whole=True)
    assert done.code == 0, done.err
    return Ended(arguments, done, folder)


@pytest.fixture
def copied(ended: Ended, tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage."""
    return Path(shutil.copytree(ended.folder / "store", tmp_path / "store"))


def again(flags: MakeFlags, store: Path, **fields: object) -> list[str]:
    """The command of the finished sequence on another store, with some fields changed."""
    return flags(store, "gain_o", "llama", **fields)


def trained(done: Finished) -> list[int]:
    """The stages a command trained."""
    return [event["stage"] for event in done.events if event["event"] == "stage_start"]


def test_all_stages_and_scores_are_stored_and_sound(ended: Ended) -> None:
    """Every file verifies; the stages are a chain of the tasks in order."""
    store = ended.store
    assert store.verify() == []
    manifests = sorted((store.manifest(key) for key in store.stage_keys()), key=lambda one: one.stage)
    assert [one.task for one in manifests] == list(TASKS)
    assert [one.parent for one in manifests] == [None, *(one.key for one in manifests[:-1])]
    assert all(one.environment["libraries"]["torch"] for one in manifests)
    assert trained(ended.done) == [1, 2, 3, 4]


def test_the_adapted_modules_are_told_once_and_recorded(ended: Ended) -> None:
    """At the start-up, before the first stage, in two layers; every manifest holds them."""
    modules = {f"model.layers.*.self_attn.{name}": 2 for name in ("q_proj", "v_proj")}
    told = [event for event in ended.done.events if event["event"] == "adapted"]
    assert [(event["stage"], event["paths"]) for event in told] == [(1, modules)]
    names = [event["event"] for event in ended.done.events]
    assert names.index("adapted") < names.index("stage_start")
    store = ended.store
    assert all(store.manifest(key).runtime["model"]["adapted"] == modules for key in store.stage_keys())


def test_the_outputs_are_complete_and_agree(ended: Ended) -> None:
    """Matrix, figures, summary and spec; the numbers are those of the stored scores."""
    names = {path.name for path in ended.output.iterdir()}
    assert {"matrix.csv", "matrix.json", "matrix.md", "matrix.png", "matrix.svg", "ap.png", "summary.json"} <= names
    assert "report.html" in names
    summary = json.loads((ended.output / "summary.json").read_text())
    assert summary["trained_stages"] == [1, 2, 3, 4]
    assert summary["stage"] == 4
    assert list(summary["data"]) == list(TASKS)
    scores = {(e["stage"], e["task"]): e["score"] for e in ended.done.events if e["event"] == "scores"}
    assert len(scores) == 4 + (2 + 3 + 4 + 4)
    last = [scores[4, task] for task in TASKS]
    assert summary["AP"] == pytest.approx(sum(last) / 4)
    assert json.loads((ended.output / "spec.json").read_text())["method"]["over"] == "o_lora"


def test_the_terminal_shows_plain_lines(ended: Ended) -> None:
    """Plan first, then every stage, then the matrix and where things are; no bars, no colours, no libraries' chatter."""
    lines = ended.done.out.splitlines()
    assert lines[0] == "Plan: 4 stages, 0 in the store, 4 to run"
    assert not [character for character in "\r\x1b" if character in ended.done.out]
    for stage, task in enumerate(TASKS, start=1):
        assert any(line.startswith(f"stage {stage}/4 {task}: step 4/4  loss ") for line in lines)
        assert any(line.startswith(f"stage {stage}/4 {task} scores: ") for line in lines)
    assert any(line.startswith("After stage 4/4: AP ") for line in lines)
    assert lines[-1].startswith("MLflow")
    assert "WARNING" not in ended.done.out


def test_mlflow_holds_a_parent_and_a_child_per_stage(ended: Ended, commands: Commands) -> None:
    """Curves by stage on the parent; loss, rate, gates and penalties on the children."""
    client = mlflow.MlflowClient(tracking_uri=commands.environment["MLFLOW_TRACKING_URI"])
    run_id = json.loads((ended.output / "mlflow_run.json").read_text())["run_id"]
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["method.over"] == "o_lora"
    points = client.get_metric_history(run_id, "AP")
    assert [point.step for point in points] == [1, 2, 3, 4]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    by_stage = {int(child.data.tags["raycl.stage"]): child for child in children}
    assert sorted(by_stage) == [1, 2, 3, 4]
    assert {child.info.status for child in children} == {"FINISHED"}
    for stage, child in by_stage.items():
        losses = client.get_metric_history(child.info.run_id, "loss")
        assert [point.step for point in losses] == [1, 2, 3, 4]
        gauges = {f"gauges/gate_mean_{branch}" for branch in range(1, stage + 1)}
        assert gauges <= set(child.data.metrics)
    assert "terms/orthogonality/ratio" in by_stage[2].data.metrics
    artifacts = {file.path for file in client.list_artifacts(run_id)}
    assert {"matrix.png", "matrix.csv", "spec.json"} <= artifacts


def test_a_rerun_trains_nothing_and_starts_nothing(ended: Ended, commands: Commands) -> None:
    """The same command shows the same matrix, with every stage and score from the store; nothing is written there."""
    before = digests(ended.folder / "store")
    done = commands.run([*ended.arguments], whole=True)
    assert done.code == 0, done.err
    assert trained(done) == []
    assert {event["event"] for event in done.events} == {"stage_end", "scores"}
    assert all(event["cached"] for event in done.events if event["event"] == "stage_end")
    assert "Plan: 4 stages, 4 in the store, 0 to run" in done.out
    assert matrix_lines(done.out) == matrix_lines(ended.done.out)
    assert digests(ended.folder / "store") == before


def test_a_rerun_from_a_cold_start_imports_no_ray(ended: Ended, commands: Commands) -> None:
    """A new interpreter that shows a finished sequence knows neither Ray nor DeepSpeed nor PEFT."""
    done = commands.cold(ended.arguments)
    assert done.code == 0, done.err
    assert "Plan: 4 stages, 4 in the store, 0 to run" in done.out
    loaded = {name.partition(".")[0] for name in done.modules}
    assert not loaded & {"ray", "deepspeed", "peft"}


def matrix_lines(text: str) -> list[str]:
    """The final matrix as printed."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Accuracy matrix"))
    return lines[start : next(number for number, line in enumerate(lines) if line.startswith("outputs"))]


def test_other_test_data_retrain_nothing(commands: Commands, flags: MakeFlags, copied: Path) -> None:
    """With fewer test examples every cell is scored anew from the stored stages, and no stage is trained."""
    before = digests(copied)
    done = commands.run(again(flags, copied, data__test_examples=4))
    assert done.code == 0, done.err
    assert trained(done) == []
    fresh = [event for event in done.events if event["event"] == "scores"]
    assert {event["examples"] for event in fresh} == {4}
    assert len(fresh) == 17
    assert digests(copied) == before


def test_lost_scores_are_made_again_and_are_the_same(commands: Commands, flags: MakeFlags, copied: Path) -> None:
    """Scoring the published states once more gives the very same predictions."""
    store = Store(str(copied))
    keys = [path.parent.name for path in (copied / "scores").rglob("scores.json")]
    before = {key: (store.read_scores(key)["score"], store.read_predictions(key)) for key in keys}
    shutil.rmtree(copied / "scores")
    done = commands.run(again(flags, copied))
    assert done.code == 0, done.err
    assert trained(done) == []
    assert {key: (store.read_scores(key)["score"], store.read_predictions(key)) for key in keys} == before


def test_a_lost_stage_is_trained_again_to_the_same_bytes(commands: Commands, flags: MakeFlags, copied: Path) -> None:
    """A stage taken out of the middle is made again from its parent; the stages after it still fit."""
    before = digests(copied)
    second = next(key for key in before if Store(str(copied)).manifest(key).stage == 2)
    shutil.rmtree(copied / "stages" / second[:2] / second)
    done = commands.run(again(flags, copied))
    assert done.code == 0, done.err
    assert trained(done) == [2]
    assert digests(copied) == before


@pytest.mark.parametrize("name", ["tensors.safetensors", "adapter/adapter_model.safetensors", "manifest.json"])
def test_a_damaged_stage_is_refused_by_name(commands: Commands, flags: MakeFlags, copied: Path, name: str) -> None:
    """One flipped byte in a stage that is needed: exit code 2, the file's name, nothing started, nothing written."""
    first = next(key for key in digests(copied) if Store(str(copied)).manifest(key).stage == 1)
    (path,) = (p for p in (copied / "stages" / first[:2] / first).rglob("*") if str(p).endswith(name))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    shutil.rmtree(copied / "scores")
    files = sorted(copied.rglob("*"))
    done = commands.run(again(flags, copied))
    assert done.code == 2, done.out
    assert done.err.startswith("error: ")
    assert str(path) in done.err
    assert "Traceback" not in done.err
    assert trained(done) == []
    assert sorted(copied.rglob("*")) == files


def test_two_drivers_of_one_spec_both_end_well(
    commands: Commands, flags: MakeFlags, ended: Ended, tmp_path: Path
) -> None:
    """Started at once on an empty store: both show the whole matrix, and the store is sound and as if one had run."""
    arguments = again(flags, tmp_path / "store")
    running = [commands.start(arguments, whole=True) for _ in range(2)]
    finished = [one.wait() for one in running]
    assert [one.code for one in finished] == [0, 0], [one.err for one in finished]
    assert digests(tmp_path / "store") == digests(ended.folder / "store")
    assert Store(str(tmp_path / "store")).verify() == []
    for one in finished:
        assert matrix_lines(one.out) == matrix_lines(ended.done.out)


def test_two_drivers_of_different_methods_share_a_store(commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """O-LoRA with two weights in one store at once: stage 1 is shared, the rest is apart."""
    each = [
        flags(tmp_path / "store", "o_lora", "llama", "roget,snippets", method__lambda1=weight) for weight in (0.1, 5)
    ]
    finished = [one.wait() for one in [commands.start(arguments) for arguments in each]]
    assert [one.code for one in finished] == [0, 0], [one.err for one in finished]
    store = Store(str(tmp_path / "store"))
    assert sorted(store.manifest(key).stage for key in store.stage_keys()) == [1, 2, 2]
    assert store.verify() == []


def test_a_run_ends_as_failed_in_mlflow_and_goes_on_in_the_same_run(
    commands: Commands, flags: MakeFlags, tmp_path: Path
) -> None:
    """A loss that is not finite ends the run with its stage and rate named; the next call of the spec resumes its run."""
    client = mlflow.MlflowClient(tracking_uri=commands.environment["MLFLOW_TRACKING_URI"])
    wild = {"train__lr": 10, "train__max_grad_norm": 0, "method__alpha": 3e38}
    arguments = flags(tmp_path / "store", "sin_lora", "llama", "roget", **wild)
    for _ in range(2):
        done = commands.run(arguments, whole=True)
        assert done.code == 2 and "Traceback" not in done.err
        assert "stage 1 (roget), step " in done.err
        assert "Lower train.lr (now 10.0)" in done.err
    (memory,) = tmp_path.glob("output-*/mlflow_run.json")
    run = client.get_run(json.loads(memory.read_text())["run_id"])
    assert run.info.status == "FAILED"
    assert Store(str(tmp_path / "store")).stage_keys() == []
    parents = client.search_runs([run.info.experiment_id], "tags.`raycl.kind` = 'sequence'")
    assert sum(one.info.run_name == run.info.run_name for one in parents) == 1
