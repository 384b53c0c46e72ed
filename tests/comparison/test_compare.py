"""Whole comparisons on tiny models: in this process, and by a pool of Ray processes of which some die."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from raycl.comparison import driver as compare
from raycl.comparison.driver import ComparisonResult, HowToRun, run_comparison
from raycl.comparison.grid import GridSpec
from raycl.comparison.runner import CellJob, CellRunner
from raycl.report import html, plots
from raycl.report.comparison import ComparisonTerminal
from raycl.sequence.driver import Options
from raycl.sequence.local import Stepper
from raycl.state.store import Store
from tests.kit.cluster import Head
from tests.kit.runs import MakeFlags

ORDERS = ["roget,snippets", "snippets,roget"]
METHODS = ["o_lora", "gain=gain_lora:over=o_lora,gate_hidden=[8]", "sin_lora", "per_task"]


@dataclass
class Place:
    """Where a comparison of small settings runs."""

    root: Path
    settings: dict[str, Any]

    def run(self, grid: dict[str, Any], **how: Any) -> tuple[ComparisonResult, str]:
        """Run it; what it left and what it printed."""
        spec = GridSpec(preset="laptop", settings=self.settings, **grid)
        stream = io.StringIO()
        options = Options(
            str(self.root / "store"), f"sqlite:///{self.root / 'mlflow.db'}", "raycl", str(self.root / "out")
        )
        terminal = ComparisonTerminal(Console(file=stream, width=220))
        result = run_comparison(spec, options, HowToRun(**({"workers": 0} | how)), terminal)
        return result, stream.getvalue()


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No figures, one thread: they take most of the time of tiny sequences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: path.touch())
        patch.setattr(html, "write_html", lambda path, *parts, **named: path.write_text(str((parts, named))) and path)
        yield


@pytest.fixture(scope="module")
def settings(flags: MakeFlags) -> dict[str, Any]:
    """Small settings that all methods share."""
    spec: dict[str, Any] = {**flags.spec("sin_lora", "llama")}
    del spec["workers"]
    return spec | {"method": {"rank": 2}, "data": spec["data"] | {"train_examples": 8, "test_examples": 4}}


@contextmanager
def broken(method: str, order: str, seed: int) -> Iterator[None]:
    """One cell fails at its second stage with an error that nobody foresaw."""
    opened = CellRunner.open

    def opens(self: CellRunner, cell: CellJob) -> Stepper:
        stepper = opened(self, cell)
        spec = stepper.job.spec
        if (spec.method.name, spec.order, spec.seed) == (method, order, seed):
            first = stepper.step
            stepper.step = MagicMock(side_effect=[first(), ZeroDivisionError("cut off")])
        return stepper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellRunner, "open", opens)
        yield


GRID = {"methods": METHODS, "orders": ORDERS, "seeds": [0, 1]}


@dataclass
class Ended:
    """A comparison with one failed cell, and what it left."""

    place: Place
    result: ComparisonResult
    shown: str


@pytest.fixture(scope="module")
def ended(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Four methods, two orders, two seeds; one sequence breaks off in its second stage."""
    place = Place(tmp_path_factory.mktemp("compared"), settings)
    with broken("sin_lora", "custom:snippets,roget", 1):
        return Ended(place, *place.run(GRID))


def test_one_bad_sequence_does_not_stop_the_table(ended: Ended) -> None:
    """15 of 16 are there; the bad one is named with its error, its first stage is kept."""
    assert ended.result.failed == 1
    assert "Comparison: 4 methods on 4 pairs of order and seed: 16 sequences, 0 in the store, 16 to run" in ended.shown
    assert "1 of 16 sequences failed:" in ended.shown
    assert (
        f"output   {ended.place.root / 'out'}" in ended.shown
        and f"store    {ended.place.root / 'store'}" in ended.shown
    )
    assert "ZeroDivisionError: cut off" in ended.shown
    assert {line.label: line.n for line in ended.result.board.lines} == {
        "o_lora": 4,
        "gain": 4,
        "sin_lora": 3,
        "per_task": 4,
    }
    record = json.loads(ended.result.outputs["compare.json"].read_text())
    (bad,) = [cell for cell in record["cells"] if cell["status"] == "failed"]
    assert (bad["label"], bad["seed"], bad["AP"]) == ("sin_lora", 1, None)
    assert "Traceback" in bad["trace"]
    assert Store(str(ended.place.root / "store")).has(bad["stage_keys"][0])
    assert len(record["cells"]) == 16


def test_figures_agree_with_the_store_and_no_ranking_is_claimed(ended: Ended) -> None:
    """AP is the mean of the stored last scores; four pairs are too few to rank."""
    cell = next(cell for cell in ended.result.cells if cell.label == "gain" and cell.seed == 1)
    assert cell.view is not None
    last = cell.view.matrix.cells[2]
    assert cell.view.ap == pytest.approx(last.mean())
    assert ended.result.board.words[0].startswith("No ranking is claimed")
    line = next(line for line in ended.result.board.lines if line.label == "per_task")
    assert line.measures["IM"].mean == pytest.approx(0)
    assert line.measures["FT"].mean == pytest.approx(0)


def test_mlflow_holds_comparison_sequences_and_stages(ended: Ended) -> None:
    """Three levels by MLflow's own tag."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{ended.place.root / 'mlflow.db'}")
    known = json.loads((ended.place.root / "out" / "mlflow_run.json").read_text())
    top = client.get_run(known["run_id"])
    experiment = [top.info.experiment_id]
    assert top.data.tags["raycl.kind"] == top.data.tags["raycl.experiment"] == "comparison"
    assert top.info.run_name.startswith("comparison of ") and "roget, snippets and snippets, roget" in top.info.run_name
    assert top.data.metrics["failed"] == 1
    assert {"leaderboard.csv", "leaderboard.md", "leaderboard.tex", "compare.json"} <= {
        file.path for file in client.list_artifacts(known["run_id"])
    }
    sequences = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{known['run_id']}'")
    assert len(sequences) == 15
    assert len({run.info.run_name for run in sequences}) == 15, "the names tell them apart"
    assert {run.info.run_name.partition(" · ")[0] for run in sequences} == {"o_lora", "gain", "sin_lora", "per_task"}
    assert {run.data.tags["raycl.experiment"] for run in sequences} == {"comparison"}
    assert {run.info.status for run in sequences} == {"FINISHED"}
    stages = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{sequences[0].info.run_id}'")
    assert {run.data.tags["raycl.stage"] for run in stages} == {"1", "2"}


def test_a_rerun_does_only_what_is_left_and_then_nothing(ended: Ended) -> None:
    """The failed sequence continues at its second stage; after that all answers come from the store."""
    place = ended.place
    result, shown = place.run(GRID)
    assert (result.failed, result.trained) == (0, 1)
    assert "15 in the store, 1 to run" in shown
    assert "stage 1/2 snippets found in the store" in shown
    before = json.loads((place.root / "out" / "mlflow_run.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "CellRunner", pytest.fail)
        patch.setattr(compare.GroupTracker, "start", pytest.fail)
        again, shown = place.run(GRID)
    assert again.trained == 0
    assert "16 in the store, 0 to run" in shown
    assert again.board.to_json() == result.board.to_json()
    assert json.loads((place.root / "out" / "mlflow_run.json").read_text()) == before


def test_bounds_and_a_bad_setting(settings: dict[str, Any], tmp_path: Path) -> None:
    """A method that cannot run fails its cells before anything starts; bounds are shown and not ranked."""
    grid = {"methods": ["o_lora", "wrong=o_lora:rank=0"], "orders": ["roget,snippets"], "bounds": True}
    result, shown = Place(tmp_path, settings).run(grid, borrowed=True)
    assert result.failed == 1
    assert "wrong  roget, snippets  seed 0: cannot run: 1 problem in the run spec:" in shown
    assert {line.label for line in result.board.lines if line.bound} == {"per_task", "mtl", "sin_lora"}
    assert {(test.first, test.second) for test in result.board.tests} <= {("o_lora", "wrong"), ("wrong", "o_lora")}
    assert "Borrowed from a paper" in shown
    assert "add them with --bounds" not in shown


@pytest.fixture
def cluster(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cluster of the tests, for this process."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_pool_of_processes_survives_a_death(
    cluster: None, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes; one that has a sequence is killed: that sequence fails, the others end; a rerun mends it."""
    import ray

    from raycl.comparison import pool

    killed: list[int] = []
    answer = pool.Pool.answer

    def kills(self: pool.Pool, call: Any) -> None:
        answer(self, call)
        started = [(actor, job) for actor, job, _ in self.calls.values() if job is not None]
        if not killed and started:
            killed.append(started[0][1].number)
            ray.kill(started[0][0])

    monkeypatch.setattr(pool.Pool, "answer", kills)
    place = Place(tmp_path, settings)
    grid = {"methods": ["o_lora", "sin_lora"], "orders": ["roget,snippets"], "seeds": [0, 1]}
    result, shown = place.run(grid, workers=None, most=2)
    assert result.failed == 1, shown
    assert "its process died" in shown
    assert [n for n, cell in enumerate(result.cells) if cell.error] == killed
    store = Store(str(tmp_path / "store"))
    processes = {store.manifest(key).runtime["process"] for key in store.stage_keys()}
    assert os.getpid() not in processes
    again, _ = place.run(grid, workers=None, most=1)
    assert again.failed == 0
    assert store.verify() == []
