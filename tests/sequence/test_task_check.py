"""The check of a stream: what it finds in tasks, without weights, and how it is shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raycl.report.task_check import print_check, print_entry, print_tasks
from raycl.sequence.resolve import resolve
from raycl.sequence.task_check import check_tasks
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.duplicates import Place
from raycl.tasks.findings import StreamCheck, TaskCheck
from tests.kit.streams import ROWS, TEAM, write_csv, write_jsonl, write_stream


def checked(folder: Path, model: Path, *tasks: dict[str, Any], **data: Any) -> StreamCheck:
    """The check of a stream of these tasks with a tiny model."""
    stream = write_stream(folder, *tasks)
    known = open_catalogue(stream)
    names = [entry.name for entry in known.streams[0].tasks]
    layer = {
        "data": {"stream": stream, "max_source_tokens": 64, "max_target_tokens": 24} | data,
        "order": ",".join(names),
    }
    spec = resolve("laptop", [layer, {"model": {"name": str(model)}, "method": {"name": "inc_lora"}}])
    return check_tasks(names, known, spec)


def shown(check: StreamCheck) -> str:
    """What a terminal of 100 columns shows."""
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_check(check, console)
    return console.export_text()


@pytest.fixture
def model(tiny_folders: dict[str, Path]) -> Path:
    """A folder of the tiny Llama: one token per known word, <unk> for all else."""
    return tiny_folders["llama"]


def test_counts_labels_lengths_and_examples(model: Path, tmp_path: Path) -> None:
    """Lengths by hand: <s> and the words of the prompt; the answer and its end."""
    rows = [{"text": "t1w1 " * (i + 1), "label": ("good", "bad")[i % 2]} for i in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", rows[:1])
    task = {"name": "t", "data": {"train": "train.jsonl", "test": "test.jsonl"}, "input": "text", "answer": "label"}
    task |= {"labels": ["good", "bad"], "prompt": {"head": "", "tail": ""}}
    found = checked(tmp_path, model, task, max_source_tokens=6)
    (one,) = found.tasks
    assert one.rows == {"train": 10, "test": 1}
    assert one.labels == {"good": (5, 1), "bad": (5, 0)}
    assert one.prompt_tokens == (6, 10, 11, 11)  # of 2, 2, 3, ..., 11: the 6th, the 10th, the last
    assert one.cut_prompts == pytest.approx(5 / 11)
    assert one.warnings == ("never tested: bad",)
    assert [sample.tokens for sample in one.samples] == [(2, 2), (3, 2)]
    assert one.samples[0].answer.endswith("</s>") and not one.samples[0].cut
    (twins,) = [one for one in found.twins if one.exact]
    assert (twins.one, twins.other, twins.exact) == (Place("t", "train"), Place("t", "test"), 1)
    text = shown(found)
    for words in (
        "good 5/1, bad 5/0",
        "half 6, 90 % 10",
        "45.5% lose",
        "test rows that are also trained",
        "a run would start",
    ):
        assert words in text


def test_what_a_run_would_be_refused_for(model: Path, tmp_path: Path) -> None:
    """Labels that are cut, and chats that the tokenizer cannot write, of all tasks at once; free text only warns."""
    write_csv(tmp_path / "t.csv")
    tasks = [
        TEAM | {"data": "t.csv", "max_answer_tokens": 1},
        TEAM | {"name": "chat", "data": "t.csv", "chat": True},
        TEAM | {"name": "free", "data": "t.csv", "answer": "Reply", "labels": None, "max_answer_tokens": 3},
    ]
    found = checked(tmp_path, model, *tasks)
    assert len(found.problems) >= 2
    assert any("cuts 3 of the 3 labels of team" in line for line in found.problems)
    assert any("no chat template" in line for line in found.problems)
    assert any("longer than 3 tokens and are cut" in line for line in found.tasks[2].warnings)
    assert "a run would be refused" in shown(found)


def test_inputs_longer_than_the_model_and_prompts_without_their_text(model: Path, tmp_path: Path) -> None:
    """A run would be refused for the first; the second trains on nothing but the instruction."""
    rows = [{"text": "t1w1 " * 400 + f"t1w{i}", "label": ("good", "bad")[i % 2]} for i in range(10)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = {"name": "t", "data": "t.jsonl", "input": "text", "answer": "label", "split": {"test": 0.4, "seed": 1}}
    positions = checked(tmp_path, model, task).limits["positions of the model"]
    found = checked(tmp_path, model, task, max_source_tokens=positions, max_target_tokens=positions)
    (line,) = found.problems
    assert f"the model has {positions} positions" in line
    assert "a run would be refused" in shown(found) and "positions; lower it by" in shown(found)
    bare = checked(tmp_path, model, task | {"instruction": "t1w2 " * 20}, max_source_tokens=9)
    assert bare.tasks[0].warnings[0].startswith(f"{bare.tasks[0].rows['train']} training prompts have nothing left")


def test_a_metric_that_fails_is_known_before_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions are tried on a right answer and on none; the other tasks are looked at all the same."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_csv(tmp_path / "t.csv")
    (tmp_path / "own.py").write_text("def none(p, r):\n    return None\ndef first(p, r):\n    return p[0] == r[0][0]\n")
    names = ("none", "first")
    tasks = [TEAM | {"name": name, "data": "t.csv", "metric": ["exact_match", f"own:{name}"]} for name in names]
    found = checked(tmp_path, model, *tasks, {"use": "snippets", "test_examples": 4}, allow_code=True)
    assert [one.name for one in found.tasks] == ["none", "first", "snippets"]
    none, first = (" ".join(one.problems) for one in found.tasks[:2])
    assert "task none: metric 'own:none': fails on the prediction 'billing'" in none and "TypeError" in none
    assert "task first: metric 'own:first': fails on the prediction ''" in first and "IndexError" in first


def test_published_tasks_need_a_place(model: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv")
    found = checked(tmp_path, model, TEAM | {"data": "t.csv"}, {"use": "agnews"})
    assert [one.name for one in found.tasks] == ["team"]
    assert found.left_out == ("agnews",)
    assert "not looked at, since published tasks need --data: agnews" in shown(found)


def test_markup_in_texts_is_shown_as_it_is(model: Path, tmp_path: Path) -> None:
    rows = [row | {"Ticket Text": f"[bold]t1w1[/bold] {i}"} for i, row in enumerate(ROWS)]
    write_csv(tmp_path / "t.csv", rows)
    found = checked(tmp_path, model, TEAM | {"data": "t.csv", "instruction": "[red]Which?[/red]"})
    sample = replace(found.tasks[0].samples[0], prompt="[red]Which?[/red]")
    task: TaskCheck = replace(found.tasks[0], samples=(sample,))
    assert "[red]Which?[/red]" in shown(replace(found, tasks=(task,)))


def test_tasks_and_entries_are_listed() -> None:
    known = open_catalogue()
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tasks({name: (known.home(name), entry) for name, entry in known.tasks.items()}, console)
    print_entry(known.tasks["qqp"], console)
    text = console.export_text()
    for words in ("task002_quoref_answer_generation", "superni", "free text", "rouge_l", "gainlora_labels:", "QQP"):
        assert words in text
