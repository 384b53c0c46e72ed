"""Loading: the draw is each task's own, records are JSON, fingerprints cover what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from raycl.sections import DataSpec
from raycl.tasks.load import load_tasks
from raycl.tasks.task import fingerprint
from tests.kit.layout_files import write_json


def two_tasks(root: Path) -> str:
    """A folder with 40 examples of wic and of boolq."""
    for name in ("WiC", "BoolQA"):
        for split in ("train", "test"):
            rows = [{"label": str(index % 4 == 0), "sentence": f"{split} {index}"} for index in range(40)]
            write_json(root / name / name / f"{split}.json", rows)
    return str(root)


def test_a_task_does_not_depend_on_what_else_is_loaded(tmp_path: Path) -> None:
    data = DataSpec(source=two_tasks(tmp_path), train_examples=10, test_examples=6)
    wic, boolq = load_tasks(["wic", "boolq"], data)
    assert load_tasks(["boolq", "wic"], data) == [boolq, wic]
    assert load_tasks(["wic"], data) == [wic]
    assert wic.record["label_counts"]["train"] == {"True": 5, "False": 5}
    assert wic.record["used"] == {"train": 10, "test": 6}
    assert [example.id.split("/")[2] for example in wic.train] != [example.id.split("/")[2] for example in boolq.train]


def test_the_seed_changes_the_draw_and_an_id_names_the_row(tmp_path: Path) -> None:
    source = two_tasks(tmp_path)
    one, two = (load_tasks(["wic"], DataSpec(source=source, train_examples=10, seed=seed))[0] for seed in (1, 2))
    assert one.train_fingerprint != two.train_fingerprint
    assert one.test_fingerprint == two.test_fingerprint
    for example in one.train:
        name, split, index = example.id.split("/")
        assert (name, split) == ("wic", "train")
        assert f"train {index}" in example.prompt


def test_revealing_the_task_changes_the_prompt(tmp_path: Path) -> None:
    source = two_tasks(tmp_path)
    (hidden,) = load_tasks(["wic"], DataSpec(source=source))
    (shown,) = load_tasks(["wic"], DataSpec(source=source, reveal_task=True))
    assert shown.train[0].prompt == "Task:WiC\nDataset:WiC\n" + hidden.train[0].prompt


def test_the_record_is_json(tmp_path: Path) -> None:
    (task,) = load_tasks(["wic"], DataSpec(source=two_tasks(tmp_path)))
    assert json.loads(json.dumps(task.record)) == task.record
    wanted = {"source", "layout", "files", "rows", "used", "dropped", "label_counts", "sampling_seed", "licence"}
    assert wanted <= set(task.record)


def test_the_fingerprint_covers_id_prompt_and_answers_but_not_the_cut(tmp_path: Path) -> None:
    (task,) = load_tasks(["wic"], DataSpec(source=two_tasks(tmp_path)))
    example = task.train[0]
    base = fingerprint((example,))
    assert fingerprint((replace(example, head="", body=example.head + example.body),)) == base
    for change in ({"id": "x"}, {"body": "x"}, {"answers": ("x",)}):
        assert fingerprint((replace(example, **change),)) != base


def test_the_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, raycl.tasks.load, raycl.tasks.scoring\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'rouge_score', 'ray'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
