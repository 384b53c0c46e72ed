"""The real benchmark data in all three layouts; skipped where they are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycl.sections import DataSpec
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task

NAMES = [*open_catalogue().stream("long"), *open_catalogue().stream("superni")]
EMPTY_REFERENCES = {"task511_reddit_tifu_long_text_summarization": 6}


@pytest.fixture(scope="module")
def tasks(benchmark_data: Path) -> dict[str, Task]:
    """All 30 tasks of the benchmark layout, whole."""
    return {task.name: task for task in load_tasks(NAMES, DataSpec(source=str(benchmark_data)))}


@pytest.fixture(scope="module")
def manifest(benchmark_data: Path) -> dict[str, dict[str, Any]]:
    """The entry of every data file."""
    return {entry["path"]: entry for entry in json.loads((benchmark_data / "manifest.json").read_text())["files"]}


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_hashes_are_those_of_the_manifest(
    name: str, tasks: dict[str, Task], manifest: dict[str, dict[str, Any]]
) -> None:
    task = tasks[name]
    folder = name if name in open_catalogue().stream("long") else f"superni/{name}"
    for split in ("train", "test"):
        entry = manifest[f"{folder}/{split}.jsonl.gz"]
        dropped = sum(task.record["dropped"][split].values())
        assert dropped == (EMPTY_REFERENCES.get(name, 0) if split == "train" else 0)
        assert task.record["rows"][split] + dropped == entry["rows"]
        if "labels" in entry:
            assert task.record["label_counts"][split] == entry["labels"]
    for path, digest in task.record["files"].items():
        assert digest == manifest[path]["sha256"]


def test_the_catalogue_knows_the_labels_of_every_labels_file(tasks: dict[str, Task], benchmark_data: Path) -> None:
    for name, task in tasks.items():
        folder = benchmark_data / ("" if name in open_catalogue().stream("long") else "superni") / name
        path = folder / "labels.json"
        assert (task.labels is not None) == path.is_file()
        if path.is_file():
            assert task.labels == tuple(json.loads(path.read_text()))


@pytest.mark.parametrize("name", open_catalogue().stream("long"))
def test_the_o_lora_copy_gives_the_same_prompts(name: str, tasks: dict[str, Task], benchmark_data: Path) -> None:
    (mini,) = load_tasks([name], DataSpec(source=str(benchmark_data / "CL_Benchmark_mini")))
    assert mini.record["layout"] == "o-lora"
    assert (len(mini.train), len(mini.test)) == (40, 40)
    for split in ("train", "test"):
        known = {(example.prompt, example.answers) for example in getattr(tasks[name], split)}
        assert {(example.prompt, example.answers) for example in getattr(mini, split)} <= known


@pytest.mark.parametrize("name", NAMES)
def test_the_gainlora_copy_holds_the_same_examples(name: str, tasks: dict[str, Task], benchmark_data: Path) -> None:
    (mini,) = load_tasks([name], DataSpec(source=str(benchmark_data / "CL_Benchmark_mini_gainlora")))
    assert mini.record["layout"] == "gainlora"
    assert mini.record["rows"] == ({"train": 6, "test": 4} if name.startswith("task") else mini.record["rows"])
    for example in (*mini.train, *mini.test):
        assert example.tail.endswith("\nOutput: ")
    if name.startswith("task"):
        known = {(example.prompt, example.answers) for example in tasks[name].train}
        assert {(example.prompt, example.answers) for example in mini.train} <= known
        assert mini.labels == tasks[name].labels


def test_a_balanced_draw_of_every_task(benchmark_data: Path) -> None:
    data = DataSpec(source=str(benchmark_data), train_examples=28, test_examples=14)
    for task in load_tasks(NAMES, data):
        assert task.record["used"] == {"train": 28, "test": 14}
        if task.metric == "exact_match":
            counts = task.record["label_counts"]["train"].values()
            assert max(counts) - min(counts) <= 1


def test_a_question_after_a_long_passage_is_never_in_the_body(tasks: dict[str, Task]) -> None:
    cues = {"multirc": "\nquestion: ", "rte": "\nsentence 2: ", "task002_quoref_answer_generation": "\nQuestion:"}
    for name, cue in cues.items():
        for example in tasks[name].test:
            assert example.tail.startswith(cue)
            assert cue not in example.body
