"""A small task, written in each of the folder layouts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = [
    {"label": "Good", "sentence": "Text: a warm and funny film . "},
    {"label": "Bad", "sentence": "Text: dull . "},
    {"label": "Good", "sentence": "Text: zażółć gęślą jaźń "},
    {"label": "Bad", "sentence": "Text: two\u2028lines "},
]
LABELS = ["Good", "Bad"]


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows: list[Any]) -> None:
    """Write rows as JSON lines, compressed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_benchmark(root: Path, ending: str = ".jsonl.gz") -> Path:
    """sst2 in the benchmark layout."""
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        write_lines(root / "sst2" / f"{split}{ending}", rows)
    write_json(root / "sst2" / "labels.json", LABELS)
    return root


def write_o_lora(root: Path) -> Path:
    """sst2 in the O-LoRA layout, with a dev file that would be an error to read."""
    folder = root / "SC" / "SST-2"
    write_json(folder / "train.json", ROWS)
    write_json(folder / "test.json", ROWS[:2])
    write_json(folder / "labels.json", LABELS)
    (folder / "dev.json").write_text("must never be opened")
    return root


def write_gainlora(root: Path) -> Path:
    """sst2 in the GainLoRA layout."""
    folder = root / "Long_Sequence" / "sst2"
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        instances = [{"input": row["sentence"], "output": row["label"]} for row in rows]
        write_json(folder / f"{split}.json", {"Definition": ["Judge the text.\n"], "Instances": instances})
    write_json(folder / "labels.json", LABELS)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "benchmark": write_benchmark,
    "o-lora": write_o_lora,
    "gainlora": write_gainlora,
}
