"""Memory of a stage on a long table: the peak resident memory of the driver and of the worker.

    python benchmarks/large_data.py --rows 1000000 --report benchmarks/results/large_data.md

Writes a table of rows of about 200 tokens, makes it a task stream, and trains one stage on all of it with a Llama of one
narrow layer, through Ray. The time is that of a tiny model and says nothing of others'; the memory holds one page of Python
and libraries for each process besides the data, which is what is measured at 1,000 rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("ticket", "please", "help", "invoice", "login", "screen", "order", "late", "price", "thanks", "again", "never")
TOKENS = 200
LIMIT_GIB = 2e9 / 2**30
"""Two gigabytes."""


def write_table(path: Path, rows: int) -> None:
    """A JSON-lines table; texts are distinct and of about `TOKENS` tokens."""
    draw = random.Random(0)
    with path.open("w") as file:
        for row in range(rows):
            text = f"{row} " + " ".join(draw.choices(WORDS, k=TOKENS - 22))
            file.write(json.dumps({"text": text, "label": ("billing", "support")[row % 2]}) + "\n")


def write_model(folder: Path) -> None:
    """A Llama of one layer, 16 wide, whose tokenizer knows the words."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from raycl.models.tiny import save_tiny_model

    save_tiny_model("llama", folder, [" ".join(WORDS), *(f" {word}" for word in (*WORDS, "billing", "support"))] * 9)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **ends)).save_pretrained(folder)


def prepared(folder: Path, rows: int) -> list[str]:
    """Writes everything; the command that trains on it."""
    write_table(folder / "rows.jsonl", rows)
    write_table(folder / "test.jsonl", 64)
    write_model(folder / "model")
    task = {
        "name": "tickets",
        "data": {"train": "rows.jsonl", "test": "test.jsonl"},
        "input": "text",
        "answer": "label",
        "labels": ["billing", "support"],
    }
    (folder / "long.yaml").write_text(yaml.safe_dump({"stream": "long-table", "tasks": [task]}))
    sets = {"data.max_source_tokens": TOKENS + 56, "data.max_target_tokens": 8, "train.batch_size": 128}
    sets |= {"train.log_every": 100, "model.precision": "fp32", "train.lr": 0.001}
    flags = [
        "--stream",
        folder / "long.yaml",
        "--model",
        folder / "model",
        "--method",
        "inc_lora",
        "--preset",
        "laptop",
    ]
    # The preset draws few examples; as many as there are rows means all.
    sets["data.train_examples"] = rows
    flags += ["--workers", "1", "--store", folder / "store", "--output", folder / "out"]
    flags += ["--tracking", f"sqlite:///{folder}/m.db", *(f"--set={name}={value}" for name, value in sets.items())]
    return [sys.executable, "-m", "raycl", "run", *map(str, flags)]


def resident(driver: psutil.Process) -> Iterator[tuple[str, float]]:
    """Name and resident GiB of the driver and of the workers that it has by now."""
    yield "driver", driver.memory_info().rss / 2**30
    for process in driver.children(recursive=True):
        name = " ".join(process.cmdline()[:1])
        if name.startswith("ray::") and "IDLE" not in name:
            yield "worker", process.memory_info().rss / 2**30


def measure(rows: int) -> dict[str, float]:
    """Peak resident GiB of driver and worker, and minutes."""
    with tempfile.TemporaryDirectory(prefix="raycl-large-") as name:
        command = prepared(Path(name), rows)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYCL_HOME": f"{name}/home", "TQDM_DISABLE": "1"}
        started, peak = time.time(), {"driver": 0.0, "worker": 0.0}
        with (Path(name) / "log").open("w") as log:
            run = psutil.Popen(command, env=environment, stdout=log, stderr=log)
            while run.poll() is None:
                try:
                    for part, size in resident(run):
                        peak[part] = max(peak[part], size)
                except psutil.Error:
                    pass  # a process that ended between two looks
                time.sleep(0.5)
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, command, (Path(name) / "log").read_text()[-3000:])
        print((Path(name) / "log").read_text()[-1500:])
        return {"rows": rows, **peak, "minutes": (time.time() - started) / 60}


def main() -> None:
    """Measure a small and a long table, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    found = [measure(1_000), measure(chosen.rows)]
    lines = ["| rows | driver, peak GiB | worker, peak GiB | minutes |", "| ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {one['rows']:,} | {one['driver']:.2f} | {one['worker']:.2f} | {one['minutes']:.1f} |" for one in found
    ]
    held = max(found[1]["driver"], found[1]["worker"]) < LIMIT_GIB
    lines.append(f"\nThe bound of 2 GB ({LIMIT_GIB:.2f} GiB) for each process {'holds' if held else 'does not hold'}.")
    text = (
        f"# A stage on a long table\n\nMade by `benchmarks/large_data.py`; rows of about {TOKENS} tokens.\n\n"
        + "\n".join(lines)
    )
    print(text)
    if chosen.report:
        chosen.report.write_text(text + "\n")
    sys.exit(not held)


if __name__ == "__main__":
    main()
