"""Fixtures of the tests of whole sequences: tiny models that read the demo's texts, commands, small settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Commands
from tiny_texts import save_model, write_tasks

from raycl.state.store import Store
from raycl.tasks.orders import ORDERS

METHODS = {
    "sin_lora": {"name": "sin_lora", "rank": 2},
    "o_lora": {"name": "o_lora", "rank": 2},
    "gain_inf": {"name": "gain_lora", "over": "inf_lora", "rank": 2, "gate_hidden": [8], "epsilon": 0.9},
    "gain_o": {"name": "gain_lora", "over": "o_lora", "rank": 2, "gate_hidden": [8]},
}
"""Method settings by a short name."""


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models with a small tokenizer of the demo's texts, by family."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(family, root / family) for family in ("llama", "t5")}


@pytest.fixture(scope="session")
def fifteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen small tasks in the benchmark layout, under the names of the long orders."""
    return write_tasks(tmp_path_factory.mktemp("fifteen"), ORDERS["long-4"])


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Starts commands, all with one home and one MLflow database."""
    root = tmp_path_factory.mktemp("commands")
    home = root / "home"
    environment = {"RAYCL_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    return Commands(root, environment | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160", "CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture(scope="session")
def flags(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MakeFlags:
    """The maker of command lines."""
    return MakeFlags(model_folders, tmp_path_factory.mktemp("configs"))


class MakeFlags:
    """Makes the arguments of small, quick sequences in this process (local mode)."""

    def __init__(self, models: dict[str, Path], scratch: Path) -> None:
        self.models, self.scratch, self.count = models, scratch, 0

    def __call__(
        self, store: Path, method: str = "sin_lora", family: str = "llama", order: str = "demo", **fields: object
    ) -> list[str]:
        """`fields` are run-spec fields with `__` for the dot, on top of the small settings."""
        self.count += 1
        path = self.scratch / f"{self.count}.yaml"
        path.write_text(yaml.safe_dump(self.spec(method, family)))
        sets = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
        output = store.parent / f"output-{self.count}"
        flags = ["--order", order, "--config", path, "--store", store, "--output", output, "--preset", "laptop"]
        return [*map(str, flags), *(part for text in sets for part in ("--set", text))]

    def spec(self, method: str, family: str) -> dict[str, object]:
        """Run-spec fields: 16 examples a task, four steps."""
        return {
            "model": {"name": str(self.models[family]), "precision": "fp32"},
            "data": {
                "source": "demo",
                "train_examples": 16,
                "test_examples": 8,
                "max_source_tokens": 48,
                "max_target_tokens": 6,
            },
            "method": METHODS[method],
            "train": {"lr": 1e-2, "batch_size": 4, "log_every": 1},
            "eval": {"batch_size": 8},
            "workers": 0,
        }


def pauses(events: list[dict[str, Any]]) -> list[float]:
    """For each stage but the last: seconds from its last step to the next stage's first, beyond data passes and scoring.

    `events` are those of one run, each with the time of its arrival; the next stage's first step is counted in.
    """
    steps = [event for event in events if event["event"] == "step"]
    ends = {event["stage"]: event["seconds"] for event in events if event["event"] == "stage_end"}
    found = []
    for stage in sorted(ends)[:-1]:
        last = max(step["at"] for step in steps if step["stage"] == stage)
        first = min(step["at"] for step in steps if step["stage"] == stage + 1)
        scoring = sum(e["seconds"] for e in events if e["event"] == "scores" and e["stage"] == stage)
        passes = ends[stage]["pass_after"] + ends[stage + 1]["pass_before"]
        found.append(first - last - scoring - passes)
    return found


def digests(folder: os.PathLike[str]) -> dict[str, str]:
    """Key -> content digest of every stage in a store."""
    store = Store(str(folder))
    return {key: store.manifest(key).digest for key in store.stage_keys()}
