"""Real sweeps on a cluster of their own: shared stages are trained once, a killed sweep resumes, resources come back."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from raycl.state.store import Store
from tests.kit.cluster import Head
from tests.kit.runs import MakeFlags, digests

pytestmark = pytest.mark.slow
JOB = Path(__file__).parents[2] / "jobs" / "sweep.py"
SECONDS = 400
"""Longest life of a command: a cluster on a busy machine takes a minute to start."""
SPACE = """
BASE = {"method.name": "o_lora"}
SPACE = {"method.lambda1": [0.1, 0.5, 1.0, 5.0]}
FIRST = [{"method.lambda1": 0.5}]
"""
STAGES = 4


class Cluster:
    """A Ray cluster of two CPUs, and the sweeps run on it."""

    def __init__(self, root: Path, flags: MakeFlags, head: Head) -> None:
        import ray

        self.root, self.head = root, head
        self.address = head.address
        ray.init(address=self.address, log_to_driver=False)
        self.uri = f"sqlite:///{root / 'mlflow.db'}"
        (root / "space.py").write_text(SPACE)
        fields = {name: value for name, value in flags.spec("o_lora", "llama").items() if name != "workers"}
        (root / "run.yaml").write_text(yaml.safe_dump(fields))
        free = {name: fields[name] for name in ("model", "data", "eval")} | {"train": {"batch_size": 4, "log_every": 1}}
        (root / "free.yaml").write_text(yaml.safe_dump(free))

    def arguments(self, store: str, *more: str, space: str = "space.py", config: str = "run.yaml") -> list[str]:
        """A sweep's command line."""
        places = ["--store", str(self.root / store), "--output", str(self.root / f"{store}-output")]
        flags = ["--space", str(self.root / space), "--config", str(self.root / config), "--preset", "laptop"]
        return [sys.executable, str(JOB), *flags, *places, "--tracking", self.uri, *more]

    def start(self, arguments: list[str]) -> subprocess.Popen[str]:
        """Start a sweep on this cluster."""
        environment = os.environ | {"RAY_ADDRESS": self.address, "RAYCL_HOME": str(self.root / "home")}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "140", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.root
        )

    def run(self, arguments: list[str]) -> str:
        """Run a sweep to its end; what it printed."""
        process = self.start(arguments)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{out}\n{err}"
        return out

    def record(self, store: str) -> dict[str, Any]:
        """A sweep's sweep.json."""
        return json.loads((self.root / f"{store}-output" / "sweep.json").read_text())

    def wait_for_stages(self, store: str, count: int, sweep: subprocess.Popen[str]) -> None:
        """Wait until a sweep has made so many."""
        deadline, place = time.monotonic() + SECONDS, Store(str(self.root / store))
        while len(place.stage_keys()) < count:
            assert sweep.poll() is None, sweep.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def wait_until_free(self) -> None:
        """Wait until all CPUs are free again."""
        import ray

        deadline = time.monotonic() + SECONDS
        while ray.available_resources().get("CPU", 0) < 2:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, flags: MakeFlags, ray_head: Head) -> Iterator[Cluster]:
    """What the tests of this module share."""
    import ray

    yield Cluster(tmp_path_factory.mktemp("sweeps"), flags, ray_head)
    ray.shutdown()


@pytest.fixture(scope="module")
def swept(cluster: Cluster) -> str:
    """What a grid of four values printed, two trials at once under ASHA."""
    # A layer with the one key `eval` is what Tune itself would evaluate.
    out = cluster.run(cluster.arguments("first", "--grace", "2", "--set", "eval.batch_size=8"))
    cluster.wait_until_free()
    return out


def test_shared_stages_are_trained_once(cluster: Cluster, swept: str) -> None:
    """Four trials that differ in a parameter that is inert at stage 1: one stage 1, and no stage twice."""
    record = cluster.record("first")
    assert len(record["trials"]) == 4
    rows = [row for trial in record["trials"] for row in trial["rows"]]
    trained = [row["key"] for row in rows if row["trained"]]
    store = Store(str(cluster.root / "first"))
    assert sorted(trained) == sorted(store.stage_keys())
    assert sum(row["stage"] == 1 for row in rows) == 4
    assert sum(store.manifest(key).stage == 1 for key in trained) == 1
    assert record["sharing"]["trained"] == len(trained) == record["sharing"]["distinct"]
    assert record["sharing"]["shared"] == len(rows) - len(trained) >= 3
    assert store.verify() == []
    assert f"{len(rows):,} needed, {len(trained):,} trained" in swept


def test_trials_reuse_their_process_and_bad_ones_end_at_a_stage_boundary(cluster: Cluster, swept: str) -> None:
    """At most two processes serve four trials; whatever ASHA ended stands at a finished stage."""
    store = Store(str(cluster.root / "first"))
    assert len({store.manifest(key).runtime["process"] for key in store.stage_keys()}) <= 2
    for trial in cluster.record("first")["trials"]:
        assert trial["status"] in ("finished", "stopped")
        assert (len(trial["rows"]) == STAGES) == (trial["status"] == "finished")
        assert len(trial["rows"]) >= 2  # the grace period


def test_the_outputs_show_the_best_first(cluster: Cluster, swept: str) -> None:
    """Leaderboard on the terminal and as CSV, the best trial's settings, the page."""
    folder = cluster.root / "first-output"
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert {row["method.lambda1"] for row in rows} == {"0.1", "0.5", "1", "5"}
    finished = [float(row["AP"]) for row in rows if row["status"] == "finished"]
    assert finished == sorted(finished, reverse=True)
    assert rows[0]["status"] == "finished"
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["method"]["lambda1"] == float(rows[0]["method.lambda1"])
    assert best["data"]["test_split"] == "test"
    assert (folder / "report.html").is_file()
    assert "lambda1" in swept
    assert "best on test" in swept
    assert swept.startswith("Sweep: 4 trials x 4 stages")
    assert "experiment" not in swept  # nothing of Tune's own


def test_mlflow_holds_sweep_sequence_and_stage(cluster: Cluster, swept: str) -> None:
    """One run for the sweep, one below it per trial, one below that per stage; one writer."""
    client = mlflow.MlflowClient(tracking_uri=cluster.uri)
    record = cluster.record("first")
    parent = client.get_run(record["run_id"])
    assert (parent.data.tags["raycl.kind"], parent.info.status) == ("sweep", "FINISHED")
    assert parent.data.metrics["stage_runs/trained"] == record["sharing"]["trained"]
    for trial in record["trials"]:
        run = client.get_run(trial["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == record["run_id"]
        assert [point.value for point in client.get_metric_history(trial["run_id"], "AP")] == [
            row["AP"] for row in trial["rows"]
        ]
        where = f"tags.`mlflow.parentRunId` = '{trial['run_id']}'"
        stages = client.search_runs([run.info.experiment_id], where)
        assert len(stages) == len(trial["rows"])
        assert {stage.info.status for stage in stages} == {"FINISHED"}


def test_a_killed_sweep_resumes_and_loses_no_finished_stage(cluster: Cluster, swept: str) -> None:
    """SIGKILL of a trial, which Tune takes up again, and then of the driver, whose trials end and give back the CPUs;
    --resume ends with the same trials, each stage kept.

    Optuna's own state goes on too; a grid, which has none, is interrupted in test_driver.py.
    """
    name = "second"
    more = ["--scheduler", "none", "--max-concurrent", "1", "--search", "optuna", "--trials", "4"]
    arguments = cluster.arguments(name, *more)
    process = cluster.start(arguments)
    cluster.wait_for_stages(name, 2, process)
    (trial,) = cluster.head.below("ResourceTrainable")
    trial.kill()
    cluster.wait_for_stages(name, 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cluster.wait_until_free()
    kept = digests(cluster.root / name)
    first = cluster.record(name)
    out = cluster.run([*arguments, "--resume"])
    assert "Resuming: " in out
    record = cluster.record(name)
    assert [trial["status"] for trial in record["trials"]] == ["finished"] * 4
    assert [trial["id"] for trial in record["trials"]][: len(first["trials"])] == [t["id"] for t in first["trials"]]
    assert record["run_id"] == first["run_id"]
    after = digests(cluster.root / name)
    assert kept.items() <= after.items()
    # Both sweeps made the same stages, in other processes and another order.
    shared = digests(cluster.root / "first").items()
    assert shared <= after.items()
    assert record["sharing"]["trained"] == 1 + 4 * (STAGES - 1) == len(after)


def test_optuna_starts_with_the_first_points_and_fails_one_trial_alone(cluster: Cluster, swept: str) -> None:
    """A diverging point is a failed trial, last on the leaderboard; the sweep ends well."""
    text = (
        "from ray import tune\n"
        'BASE = {"method.name": "sin_lora", "method.rank": 2, "method.alpha": 3e38, "train.max_grad_norm": 0}\n'
        'SPACE = {"train.lr": tune.loguniform(1e-40, 10), "train.warmup": [0.0]}\n'
        'FIRST = [{"train.lr": 1e-40, "train.warmup": 0.0}, {"train.lr": 10.0, "train.warmup": 0.0}]\n'
    )
    (cluster.root / "wild.py").write_text(text)
    more = ["--order", "roget,snippets", "--trials", "2", "--search", "optuna"]
    cluster.run(cluster.arguments("third", *more, space="wild.py", config="free.yaml"))
    trials = cluster.record("third")["trials"]
    assert {trial["point"]["train.lr"] for trial in trials} == {1e-40, 10.0}
    (bad,) = [trial for trial in trials if trial["status"] == "failed"]
    assert bad["point"]["train.lr"] == 10.0
    assert "Lower train.lr" in bad["message"]


def test_a_stopped_trial_with_two_workers_gives_everything_back(cluster: Cluster, swept: str) -> None:
    """One group fits; ASHA ends the second trial, which learns nothing, while its group trains on; CPUs are free soon."""
    (cluster.root / "slow.py").write_text(
        'BASE = {"method.name": "o_lora", "train.epochs": [25, 40]}\nSPACE = {"train.lr": [1e-2, 1e-40]}\n'
        'FIRST = [{"train.lr": 1e-2}, {"train.lr": 1e-40}]\n'
    )
    more = ["--workers", "2", "--order", "snippets,roget", "--grace", "1"]
    out = cluster.run(cluster.arguments("fourth", *more, space="slow.py", config="free.yaml"))
    cluster.wait_until_free()
    assert "1 at once" in out
    good, bad = cluster.record("fourth")["trials"]
    assert (good["status"], len(good["rows"])) == ("finished", 2)
    assert (bad["status"], len(bad["rows"])) == ("stopped", 1)
    store = Store(str(cluster.root / "fourth"))
    assert {store.manifest(key).runtime["workers"] for key in store.stage_keys()} == {2}
    assert sorted(store.manifest(key).stage for key in store.stage_keys()) == [1, 1, 2]
