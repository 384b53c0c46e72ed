"""Settings of single tasks in a stream: values per stage of the run spec, below what is said for the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl.errors import SpecError
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec
from tests.kit.streams import TEAM, write_csv, write_stream


def spec(folder: Path, *runs: dict[str, Any], **said: Any) -> RunSpec:
    """The spec of a stream of one task per `run`."""
    write_csv(folder / "t.csv")
    tasks = [TEAM | {"name": f"t{i}", "data": "t.csv", "run": run} for i, run in enumerate(runs)]
    layer = {"data": {"stream": write_stream(folder, *tasks)}, "method": {"name": "inc_lora"}}
    return resolve("laptop", [layer, said])


def test_a_task_without_a_setting_has_the_presets(tmp_path: Path) -> None:
    found = spec(tmp_path, {}, {"train": {"lr": 0.1, "epochs": 3}}, {"train": {"epochs": 2}}).train
    assert (found.lr, found.epochs) == ([5e-4, 0.1, 5e-4], [1, 3, 2])
    assert spec(tmp_path, {}, {}).train.lr == 5e-4


def test_what_is_said_for_the_run_wins(tmp_path: Path) -> None:
    assert spec(tmp_path, {"train": {"lr": 0.1}}, {}, train={"lr": 0.2}).train.lr == 0.2


def test_a_setting_follows_its_task_in_another_order(tmp_path: Path) -> None:
    found = spec(tmp_path, {"train": {"lr": 0.1}}, {}, {}, order="t2,t0")
    assert found.tasks == ["t2", "t0"]
    assert found.train.lr == [5e-4, 0.1]


def test_settings_of_the_method(tmp_path: Path) -> None:
    """Those that take a value per stage; others are refused, all at once."""
    found = spec(tmp_path, {"method": {"lambda1": 0.7}}, {}, method={"name": "o_lora"})
    assert found.method.model_dump()["lambda1"] == [0.7, 0.5]
    with pytest.raises(SpecError) as caught:
        spec(tmp_path, {"train": {"batch_size": 4}}, {"method": {"rank": 3}, "seed": 1})
    message = str(caught.value)
    assert "3 problems" in message
    for words in (
        "task 't0': run: train.batch_size",
        "'t1': run: method.rank",
        "run: seed",
        "allowed: train.lr, train.epochs",
    ):
        assert words in message
