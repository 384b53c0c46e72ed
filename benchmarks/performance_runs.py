"""The rows of benchmarks/performance.py on whole runs: their starts, the time between stages, and what the store holds.

They keep store, output and MLflow's database in a folder of their own, and find the base model where any run does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from pauses import pauses
from performance_cell import Bar, Cell, Figure

import raycl
from raycl.events import Event, StageEnd
from raycl.models.precision import native_precision
from raycl.state.store import Store

ROOT = Path(__file__).resolve().parents[1]
STAGES = 15
WORDS = ("ticket", "please", "help", "invoice", "login", "screen", "order", "late", "price", "thanks", "again", "never")
LABELS = ("billing", "support")


def in_folder(measure: Callable[[Path], Figure]) -> Figure:
    """Measure in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="raycl-performance-") as name:
        return measure(Path(name))


def write_tasks(folder: Path, train: int, test: int, tasks: int = STAGES) -> None:
    """Small tasks, as the stream tasks.yaml."""
    entries = []
    for number in range(1, tasks + 1):
        for split, count in (("train", train), ("test", test)):
            rows = [
                {"text": " ".join((f"{number} {split} {row}", *WORDS[row % 4 :])), "label": LABELS[row % 2]}
                for row in range(count)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}{number}.jsonl").write_text(lines, encoding="utf-8")
        data = {"train": f"train{number}.jsonl", "test": f"test{number}.jsonl"}
        entries.append(
            {"name": f"task{number}", "data": data, "input": "text", "answer": "label", "labels": list(LABELS)}
        )
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"stream": "small", "tasks": entries}), encoding="utf-8")


def write_fifteen(folder: Path, width: int = 576, layers: int = 12) -> list[str]:
    """Fifteen small tasks, and a random Llama whose branches are as large as those of a real small model; the words of the
    command that trains on them."""
    write_tasks(folder, 8, 2)
    write_model(folder / "model", width, layers)
    sets = {
        "data.train_examples": 8,
        "data.test_examples": 2,
        "data.max_source_tokens": 48,
        "data.max_target_tokens": 8,
    }
    sets |= {"train.batch_size": 4, "model.precision": "fp32", "eval.forward": "false"}
    return [
        *(
            "--stream",
            f"{folder}/tasks.yaml",
            "--model",
            f"{folder}/model",
            "--method",
            "gain_lora",
            "--preset",
            "laptop",
        ),
        *("--workers", "0", "--store", f"{folder}/store", "--output", f"{folder}/out"),
        *(f"--set={name}={value}" for name, value in sets.items()),
    ]


def write_model(folder: Path, width: int, layers: int) -> None:
    """A random Llama of so many narrow layers, whose tokenizer knows the words."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from raycl.models.tiny import save_tiny_model

    save_tiny_model("llama", folder, [" ".join((*WORDS, *LABELS))] * 9)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers}
    sizes |= {"vocab_size": len(tokenizer), "num_attention_heads": 8, "num_key_value_heads": 8}
    LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)


def run(words: Sequence[str], until: str | None = None) -> float:
    """`raycl run` in a process of its own: seconds until it has ended, or until a line holds `until`; it runs to its end.

    Raises CalledProcessError with what it wrote if it fails, ValueError if no line held the text.
    """
    command = [sys.executable, "-m", "raycl", "run", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    started, reached, lines = time.perf_counter(), None, []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if reached is None and until is not None and until in line:
                reached = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(lines[-40:]))
    if until is None:
        return time.perf_counter() - started
    if reached is None:
        raise ValueError(f"no line of the run held {until!r}")
    return reached


def found_whole(tracked: bool, folder: Path) -> Figure:
    """Seconds of a command whose fifteen stages and scores are all stored: the median of five."""
    words = [*write_fifteen(folder), "--tracking", f"sqlite:///{folder}/mlflow.db" if tracked else "off"]
    first = run(words)
    again = [run(words) for _ in range(5)]
    note = f"tiny model, MLflow {'in SQLite' if tracked else 'off'}; the first run took {first:.0f} s"
    return Figure(median(again), details={"note": note, "seconds": again})


def stored_bytes(folder: Path) -> Figure:
    """All bytes of a store after fifteen stages, over the numbers that the stages added."""
    run([*write_fifteen(folder), "--tracking", "off"])
    store = Store(str(folder / "store"))
    added = 0
    for key in store.stage_keys():
        part = store.read(key)
        branch = [*part.pair.a.values(), *part.pair.b.values()]
        added += sum(one.numel() * one.element_size() for one in (*branch, *part.tensors.values()))
    held = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    note = f"{held / 2**20:.1f} MiB with manifests, scores and predictions; tensors {added / 2**20:.1f} MiB"
    return Figure(held / added, details={"note": note, "held": held, "added": added})


def first_step(workers: int, folder: Path) -> float:
    """Seconds from the shell to the first step's line; a stage of four steps says each."""
    sets = {"data.train_examples": 32, "data.test_examples": 2, "train.log_every": 1}
    words = ["--order", "roget", "--preset", "demo", "--workers", str(workers), "--tracking", "off", "--store"]
    words += [f"{folder}/store{workers}", "--output", f"{folder}/out{workers}"]
    return run([*words, *(f"--set={name}={value}" for name, value in sets.items())], until="step 1/")


def first_step_here(folder: Path) -> Figure:
    """Of a run in one process."""
    first_step(0, folder / "warm")
    note = "packaged model, 8 x 64 tokens, MLflow off, files read once before; the step itself is in it"
    return Figure(first_step(0, folder), native_precision(), details={"note": note})


def first_step_in_group(folder: Path) -> Figure:
    """How much later a group of one worker takes its first step."""
    alone, grouped = first_step(0, folder), first_step(1, folder)
    note = f"{grouped:.1f} s with one worker, {alone:.1f} s in one process; packaged model"
    return Figure(grouped - alone, native_precision(), details={"note": note})


def between_stages(workers: int, folder: Path) -> Figure:
    """The longest pause between two stages of a warm group of so many workers, less a step."""
    found = pauses("packaged", "gain_lora", workers)
    each = ", ".join(f"{one:.2f}" for one in found.seconds)
    note = f"{each} s; gain_lora, packaged model, without one step ({found.step:.2f} s)"
    return Figure(max(found.seconds), native_precision(), details={"note": note})


class Ends:
    """Keeps what stages say at their ends."""

    def __init__(self) -> None:
        self.ends: list[StageEnd] = []

    def handle(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, StageEnd):
            self.ends.append(event)


def passes(tokens: int | None, folder: Path) -> Figure:
    """What InfLoRA's stages spend beside training, in percent of it: data passes, design, bases, installing."""
    fields = {
        "order": "roget,snippets,plots",
        "method": {"name": "inf_lora", "tokens_per_dim": tokens},
        "data": {"train_examples": 200, "test_examples": 2},
        "workers": 0,
    }
    options = raycl.Options(store=f"{folder}/store", tracking="off", output=f"{folder}/out")
    ends = Ends()
    raycl.run_sequence(raycl.resolve("laptop", [fields]), options, [ends])
    parts = [end.seconds for end in ends.ends]
    shares = [100 * (one["pass_before"] + one["pass_after"] + one["other"]) / one["train"] for one in parts]
    read = "every example" if tokens is None else f"{tokens} tokens for each of 576 dimensions"
    note = f"packaged model, one epoch of 200 examples; both passes read {read}"
    return Figure(median(shares), native_precision(), details={"note": note, "seconds": [dict(one) for one in parts]})


def not_useful(train: int, folder: Path) -> Figure:
    """Percent of the wall time of a process that trains fifteen tasks which is none of benchmarks/useful_time.py's."""
    test = 16
    write_tasks(folder, train, test)
    command = [sys.executable, str(ROOT / "benchmarks" / "useful_time.py"), str(folder)]
    command += [f"--train={train}", f"--test={test}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - started
    seconds = json.loads(done.stdout.splitlines()[-1])
    shares = ", ".join(f"{part} {100 * one / whole:.0f} %" for part, one in seconds.items())
    note = f"{whole:.0f} s from shell to shell: {shares}; gain_lora, {train} training and {test} test examples a task"
    value = 100 * (whole - sum(seconds.values())) / whole
    return Figure(value, native_precision(), details={"note": note, "whole": whole, "seconds": seconds})


def _cell(name: str, what: str, bar: Bar, measure: Callable[[Path], Figure], version: int = 1) -> Cell:
    return Cell(name, what, bar, partial(in_folder, measure), version)


RUN_CELLS = (
    _cell(
        "found-15-untracked",
        "a sequence of 15 stages found whole in the store, shell to shell, MLflow off",
        Bar(2.0, " s"),
        partial(found_whole, False),
    ),
    _cell(
        "found-15-tracked",
        "the same with MLflow's records in SQLite",
        Bar(2.0, " s"),
        partial(found_whole, True),
    ),
    _cell("store-15", "bytes of a store after 15 stages over what they added", Bar(1.05, "x"), stored_bytes),
    _cell("first-step-local", "`raycl run` to its first training step, one process", Bar(12.0, " s"), first_step_here),
    _cell("first-step-group", "how much later with a worker group", Bar(15.0, " s"), first_step_in_group),
    _cell(
        "between-stages",
        "between two stages of a warm worker group, beyond passes and evaluation",
        Bar(1.0, " s"),
        partial(between_stages, 1),
    ),
    _cell("between-stages-2", "the same of a group of two workers", Bar(1.0, " s"), partial(between_stages, 2)),
    _cell(
        "not-useful-15",
        "wall time of 15 stages, packaged model, not in forward, backward, optimizer or generation",
        Bar(10.0, " %"),
        partial(not_useful, 64),
    ),
    _cell(
        "not-useful-15-laptop",
        "the same with as many examples as the preset `laptop` has",
        Bar(10.0, " %"),
        partial(not_useful, 256),
    ),
    _cell(
        "passes-inf_lora",
        "data passes and bases of `inf_lora`, of a stage's training, `method.tokens_per_dim` 8",
        Bar(10.0, " %"),
        partial(passes, 8),
        version=2,
    ),
    _cell("passes-all-inf_lora", "the same over all rows, as by default", Bar(10.0, " %"), partial(passes, None)),
)
