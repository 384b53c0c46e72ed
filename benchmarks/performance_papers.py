"""The rows of benchmarks/performance.py that set four stages of `raycl run` beside a process of transformers' Trainer and
PEFT for each stage (benchmarks/papers_stage.py), both from cold: the same base model, prompts, steps and tests."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from performance_cell import Bar, Cell, Figure
from performance_runs import ROOT, run

import raycl
from raycl.models.load import load_model
from raycl.models.precision import native_precision
from raycl.sections import ModelSpec
from raycl.tasks.load import load_tasks

TESTS = 24
"""Test prompts of each task; all tasks so far are tested after each stage."""
SMALL, LARGE = 64, 192
"""Training examples of a task: where starting costs much, and where training does."""


def against_papers(examples: int) -> Figure:
    """How much longer the papers' way takes, all in all."""
    with tempfile.TemporaryDirectory(prefix="raycl-performance-") as name:
        folder, precision = Path(name), native_precision()
        fields = {"order": "demo", "data": {"train_examples": examples, "test_examples": TESTS}}
        spec = raycl.resolve("demo", [fields])
        tasks = load_tasks(spec.tasks, spec.data)
        for task in tasks:
            for split, rows in (("train", task.train), ("test", task.test)):
                lines = [json.dumps({"prompt": row.prompt, "answer": row.answers[0]}) for row in rows]
                (folder / f"{task.name}-{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        write_base(folder / "base", precision)
        words = ["--order", "demo", "--preset", "demo", "--method", "inc_lora", "--workers", "0"]
        words += ["--store", f"{folder}/store", "--output", f"{folder}/out"]
        words += ["--tracking", f"sqlite:///{folder}/mlflow.db", "--set=eval.forward=false"]
        words += [f"--set=data.train_examples={examples}", f"--set=data.test_examples={TESTS}"]
        theirs, mine = papers(folder, [task.name for task in tasks], precision), run(words)
        note = (
            f"{theirs:.0f} s against {mine:.0f} s; four stages of {examples} examples, {TESTS} test prompts a task, "
            "inc_lora, packaged model, MLflow in SQLite on raycl's side"
        )
        return Figure(theirs / mine, precision, details={"note": note, "papers": theirs, "raycl": mine})


def write_base(folder: Path, precision: str) -> None:
    """The packaged model as a folder, as it would come from a hub."""
    loaded = load_model(ModelSpec.model_validate({"precision": precision}), "cpu")
    model: Any = loaded.backbone.model
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def papers(folder: Path, names: list[str], precision: str) -> float:
    """Seconds of all stages, one process after the other. Raises CalledProcessError if one fails."""
    started = time.perf_counter()
    for index, name in enumerate(names):
        command = [sys.executable, str(ROOT / "benchmarks" / "papers_stage.py"), "--model", f"{folder}/base"]
        command += ["--train", f"{folder}/{name}-train.jsonl", "--out", f"{folder}/stage{index}"]
        command += ["--tests", *(f"{folder}/{seen}-test.jsonl" for seen in names[: index + 1])]
        command += ["--before", *(f"{folder}/stage{earlier}" for earlier in range(index)), "--precision", precision]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started


def _cell(name: str, what: str, bar: float, examples: int) -> Cell:
    text = f"four stages as the papers run them, Trainer and PEFT in a process each, over `raycl run`: {what}"
    return Cell(f"papers-{name}", text, Bar(bar, "x", "least"), partial(against_papers, examples))


PAPERS_CELLS = (
    _cell("small", f"{SMALL} examples a task", 2.0, SMALL),
    _cell("large", f"{LARGE} examples a task", 1.0, LARGE),
)
