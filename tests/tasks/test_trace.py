"""The stream of TRACE in docs/examples, over a small copy of its folders."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import raycl
from raycl.sequence.job import make_job
from raycl.state.store import Store
from tests.kit.cli import invoke
from tests.kit.places import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "trace"
ANSWERS = {
    "C-STANCE": ["A", "B", "C"],
    "FOMC": ["A", "B", "C"],
    "MeetingBank": ["A bill on roads.", "A report on parks."],
    "Py150": ["return <NUM_LIT:1>", "import os"],
    "ScienceQA": ["B\nIt is a gas.", "A\nIt is a metal."],
    "NumGLUE-cm": ["6", "12"],
    "NumGLUE-ds": ["3.5", "40"],
    "20Minuten": ["Ein Satz.", "Noch ein Satz."],
}
"""Task -> answers of its rows, in the order of the release's scripts."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four rows a split, and the example's files beside the tasks' folders."""
    for task, answers in ANSWERS.items():
        (tmp_path / task).mkdir()
        for split in ("train", "eval", "test"):
            rows = [
                {"prompt": f"{split} question {number} of {task}\nAnswer:", "answer": answers[number % len(answers)]}
                for number in range(4)
            ]
            (tmp_path / task / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def measures() -> ModuleType:
    """The example's measures."""
    spec = importlib.util.spec_from_file_location("trace_measures", EXAMPLE / "measures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_eight_tasks_as_the_release_has_them(folder: Path, tmp_path: Path, flags) -> None:
    """Order, prompts word for word, epochs of the scripts, measures; the third split is for validation."""
    data = {"stream": str(folder / "trace.yaml"), "allow_code": True}
    model = flags.spec("o_lora", "llama")["model"]
    job = make_job(raycl.resolve("laptop", [{"data": data, "model": model}]), Store(str(tmp_path / "store")))
    assert [task.name for task in job.tasks] == list(ANSWERS)
    assert job.spec.train.epochs == [5, 3, 7, 5, 3, 5, 5, 7]
    for task in job.tasks:
        assert task.train[1].prompt == f"train question 1 of {task.name}\nAnswer:"
        assert task.train[1].answers[0] == ANSWERS[task.name][1]
        assert len(task.test) == 4 and task.test[0].prompt.startswith("test question 0")
    metrics = {task.name: task.metric.partition("@")[0] for task in job.tasks}
    assert metrics["C-STANCE"] == metrics["FOMC"] == metrics["NumGLUE-cm"] == "exact_match"
    assert metrics["MeetingBank"] == metrics["20Minuten"] == "rouge_l"
    assert "code_similarity" in metrics["Py150"] and "first_letter" in metrics["ScienceQA"]
    held = data | {"test_split": "validation"}
    checked = make_job(raycl.resolve("laptop", [{"data": held, "model": model}]), Store(str(tmp_path / "store")))
    assert all(task.test[0].prompt.startswith("eval question 0") for task in checked.tasks)


def test_the_stream_is_found_fit(folder: Path, flags) -> None:
    """`raycl tasks check` reads it, with code let through, and refuses it without."""
    model = str(flags.models["llama"])
    answer = invoke("tasks", ["check", str(folder / "trace.yaml"), "--allow-code", "--model", model])
    assert answer.code == 0, answer.output
    assert all(task in answer.output for task in ANSWERS)
    refused = invoke("tasks", ["check", str(folder / "trace.yaml"), "--model", model])
    assert refused.code == 2 and "--allow-code" in refused.stderr


def test_lines_of_code_are_compared_with_their_literals(measures: ModuleType) -> None:
    """By hand: `return 1` against `return 12` share 8 characters of 8 and 9; marks stand for what they hold."""
    assert measures.code_similarity("return <NUM_LIT:1>", ["return 12"]) == pytest.approx(16 / 17)
    assert measures.code_similarity("f(<STR_LIT>, <NUM_LIT>)", ["f(, 0)"]) == 1.0
    assert measures.code_similarity("ab", ["xy", "ab"]) == 1.0
    assert measures.code_similarity("ab", ["xy"]) == 0.0


def test_only_the_chosen_letter_counts(measures: ModuleType) -> None:
    """With the reasons behind it, or a word before it."""
    assert measures.first_letter("B\nBecause", ["B\nIt is a gas."]) == 1.0
    assert measures.first_letter("Answer: B because", ["B"]) == 1.0
    assert measures.first_letter("A", ["B"]) == 0.0
    assert measures.first_letter("", ["B"]) == 0.0
