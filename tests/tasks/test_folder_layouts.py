"""Folder layouts: detection, reading, and what is said about malformed data."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.folder import load_folder
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task
from tests.kit.layout_files import (
    LABELS,
    ROWS,
    WRITERS,
    write_benchmark,
    write_gainlora,
    write_json,
    write_lines,
    write_o_lora,
)

SAMSUM = "task1572_samsum_summary"


def load(root: Path, *names: str, **fields: Any) -> list[Task]:
    """Tasks from a folder."""
    return load_tasks(names or ("sst2",), DataSpec(source=str(root), **fields))


def failure(root: Path, *names: str) -> str:
    """The message of the DataError that loading raises."""
    with pytest.raises(DataError) as caught:
        load(root, *names)
    return str(caught.value)


@pytest.mark.parametrize("layout", list(WRITERS))
@pytest.mark.parametrize("parent", [".", "CL_Benchmark"])
def test_each_layout_is_found_in_the_folder_or_its_parent(layout: str, parent: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / parent)
    (task,) = load(tmp_path)
    assert task.record["layout"] == layout
    assert task.record["rows"] == {"train": 4, "test": 2}
    assert task.record["label_counts"]["train"] == {"Good": 2, "Bad": 2}
    assert task.labels == ("Good", "Bad")
    assert [example.answers for example in task.train] == [(row["label"],) for row in ROWS]
    for name, digest in task.record["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert {Path(name).name.split(".")[0] for name in task.record["files"]} == {"train", "test", "labels"}


def test_layouts_with_the_same_examples_give_the_same_prompts(tmp_path: Path) -> None:
    (packed,) = load(write_benchmark(tmp_path / "a"))
    (plain,) = load(write_benchmark(tmp_path / "b", ".jsonl"))
    (published,) = load(write_o_lora(tmp_path / "c"))
    assert packed.train == plain.train == published.train
    assert packed.train_fingerprint == published.train_fingerprint
    (other,) = load(write_gainlora(tmp_path / "d"))
    assert other.train[1].prompt == "Judge the text.\nText: dull . \nOutput: "


def test_superni_layouts(tmp_path: Path) -> None:
    rows = [{"id": "1", "input": "Ann: hi", "output": ["Ann greets.", "A greeting."]}, {"input": "b", "output": "B"}]
    for split in ("train", "test"):
        write_json(
            tmp_path / "a" / "SuperNI" / SAMSUM / f"{split}.json", {"Definition": ["Summarise."], "Instances": rows}
        )
        lines = [row | {"definition": "Summarise."} for row in rows]
        write_lines(tmp_path / "b" / "superni" / SAMSUM / f"{split}.jsonl", lines)
    (published,), (lines_task,) = load(tmp_path / "a", SAMSUM), load(tmp_path / "b", SAMSUM)
    assert published.train == lines_task.train
    assert published.metric == "rouge_l"
    assert published.labels is None
    assert published.record["label_counts"] == {"train": None, "test": None}
    assert published.train[0].answers == ("Ann greets.", "A greeting.")
    assert published.train[0].prompt.startswith("Definition: Summarise.\n\nNow complete")


def test_empty_references_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"definition": "D", "input": "a", "output": [""]}, {"definition": "D", "input": "b", "output": ["", "B"]}]
    for split in ("train", "test"):
        write_lines(tmp_path / "superni" / SAMSUM / f"{split}.jsonl", rows)
    (task,) = load(tmp_path, SAMSUM)
    assert task.record["dropped"]["train"] == {"empty reference": 1}
    assert [example.answers for example in task.train] == [("B",)]


def test_mnli_without_majority_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "NLI" / "MNLI"
    row = {"sentence": "sentence 1: a\nsentence 2: b", "label": "neutral"}
    write_json(folder / "train.json", [row])
    write_json(folder / "test.json", [row, row | {"label": "-"}])
    (task,) = load(tmp_path, "mnli")
    assert task.record["dropped"] == {"train": {}, "test": {"label '-'": 1}}
    assert len(task.test) == 1


def test_gainlora_qqp_answers_yes_or_no_whatever_its_labels_say(tmp_path: Path) -> None:
    folder = tmp_path / "Long_Sequence" / "qqp"
    for split in ("train", "test"):
        write_json(folder / f"{split}.json", {"Definition": ["D"], "Instances": [{"input": "a", "output": "yes"}]})
    write_json(folder / "labels.json", ["False", "True"])
    assert load(tmp_path, "qqp")[0].labels == ("yes", "no")


def test_the_test_file_is_never_used_for_training(tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    write_json(tmp_path / "SC" / "SST-2" / "test.json", [{"label": "Bad", "sentence": "only in test"}])
    (task,) = load(tmp_path)
    assert not any("only in test" in example.prompt for example in task.train)
    assert not any(name.endswith("dev.json") for name in task.record["files"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "no usable rows"),
        ("{}", "a JSON object of 0"),
        ("5", "got 5"),
        ("[5]", "index 0: a row is 5"),
        ('[{"label": "Good"}]', "index 0: field 'sentence' is missing"),
        ('[{"sentence": "a"}]', "index 0: field 'label' is missing"),
        ('[{"sentence": "  ", "label": "Good"}]', "index 0, field 'sentence': got '  '"),
        ('[{"sentence": 7, "label": "Good"}]', "got 7"),
        ('[{"sentence": "a", "label": "Goood"}]', "label 'Goood' (nearest: 'Good'); allowed: Good, Bad"),
        ('[{"sentence": "a", "label": "-"}]', "label '-'; allowed: Good, Bad"),
        ('[{"sentence": "\\ud800", "label": "Good"}]', "lone surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "not JSON"),
    ],
)
def test_malformed_o_lora_files(content: str, expected: str, tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    (tmp_path / "SC" / "SST-2" / "train.json").write_text(content)
    message = failure(tmp_path)
    assert expected in message
    assert "train.json" in message
    assert "allowed:" in message
    assert "next step:" in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"not gzip", "is damaged"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "is damaged"),
        (gzip.compress(b"\xff\xfe\xfd", mtime=0), "byte 0 is not UTF-8"),
        (gzip.compress(b'{"label": "Good", "sentence": "a"}\n{"label"', mtime=0), "line 2: not JSON"),
        (gzip.compress(b"", mtime=0), "no usable rows"),
    ],
)
def test_malformed_benchmark_files(data: bytes, expected: str, tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "sst2" / "train.jsonl.gz").write_bytes(data)
    assert expected in failure(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "a list `Instances`"),
        ({"Definition": ["D"]}, "a list `Instances`"),
        ({"Definition": ["D"], "Instances": []}, "no usable rows"),
        ({"Definition": ["D"], "Instances": [{"input": "a"}]}, "field 'output'"),
        ({"Definition": ["D"], "Instances": [{"input": "a", "output": [1]}]}, "field 'output'"),
        ({"Definition": 5, "Instances": [{"input": "a", "output": "Good"}]}, "field 'definition'"),
        ({"Definition": [], "Instances": ["a"]}, "index 0: a row is 'a'"),
    ],
)
def test_malformed_gainlora_files(value: Any, expected: str, tmp_path: Path) -> None:
    write_gainlora(tmp_path)
    write_json(tmp_path / "Long_Sequence" / "sst2" / "train.json", value)
    assert expected in failure(tmp_path)


def test_superni_needs_a_definition(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / "SuperNI" / SAMSUM / f"{split}.json"
        write_json(path, {"Definition": [], "Instances": [{"input": "a", "output": "b"}]})
    assert "field 'definition'" in failure(tmp_path, SAMSUM)


@pytest.mark.parametrize(
    ("value", "expected"),
    [({}, "list of two or more labels"), (["a"], "two or more"), (["a", "a"], "stands twice"), (["a", 1], "got 1")],
)
def test_malformed_labels(value: Any, expected: str, tmp_path: Path) -> None:
    write_json(write_o_lora(tmp_path) / "SC" / "SST-2" / "labels.json", value)
    message = failure(tmp_path)
    assert "labels.json" in message
    assert expected in message


def test_many_bad_rows_are_counted_and_both_files_reported(tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    write_json(tmp_path / "SC" / "SST-2" / "train.json", [{"label": "?", "sentence": "a"}] * 9)
    write_json(tmp_path / "SC" / "SST-2" / "test.json", 1)
    message = failure(tmp_path)
    assert "6 more rows with problems" in message
    assert "test.json" in message


def test_the_problems_of_all_tasks_are_listed(tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    (tmp_path / "SC" / "SST-2" / "test.json").unlink()
    message = failure(tmp_path, "sst2", "yelp", "nonsense")
    assert message.startswith("3 problems in the task data:")
    assert "test.json: cannot be read" in message
    assert "task yelp: no training file" in message
    assert "task 'nonsense': unknown" in message


@pytest.mark.parametrize("name", ["../sst2", "/etc", "sst2/../sst2", "SST-2", ""])
def test_a_name_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    assert "unknown" in failure(write_benchmark(tmp_path), name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    message = failure(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "--order demo" in message


def test_labels_fall_back_to_the_catalogue(tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    (tmp_path / "SC" / "SST-2" / "labels.json").unlink()
    assert load_folder(tmp_path, open_catalogue().tasks["sst2"]).labels == tuple(LABELS)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    write_o_lora(tmp_path)
    path = tmp_path / "SC" / "SST-2" / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    assert len(load(tmp_path)[0].train) == 4


def test_json_lines_in_a_file_named_json_are_read_and_told_of(tmp_path: Path) -> None:
    """The content decides; the record names the files whose name says another form, and the examples are the same."""
    (plain,) = load(write_o_lora(tmp_path / "a"))
    folder = write_o_lora(tmp_path / "b") / "SC" / "SST-2"
    write_lines(folder / "train.json", ROWS)
    (lines,) = load(tmp_path / "b")
    assert lines.train == plain.train
    assert lines.record["read_as"] == {"SC/SST-2/train.json": "JSON lines"}
    assert "read_as" not in plain.record
    write_lines(folder / "train.json", [ROWS[0], ROWS[1] | {"label": "Godo"}])
    assert "train.json, line 2" in failure(tmp_path / "b")


def test_json_lines_of_the_gainlora_form_bring_their_own_definitions(tmp_path: Path) -> None:
    (published,) = load(write_gainlora(tmp_path / "a"))
    folder = write_gainlora(tmp_path / "b") / "Long_Sequence" / "sst2"
    rows = [{"input": row["sentence"], "output": row["label"], "definition": "Judge the text.\n"} for row in ROWS]
    write_lines(folder / "train.json", rows)
    assert load(tmp_path / "b")[0].train == published.train


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_json_list_in_a_file_named_jsonl_is_read_and_told_of(ending: str, tmp_path: Path) -> None:
    (lines,) = load(write_benchmark(tmp_path / "a", ending))
    text = json.dumps(ROWS, indent=1).encode()
    write_benchmark(tmp_path / "b", ending)
    path = tmp_path / "b" / "sst2" / f"train{ending}"
    path.write_bytes(gzip.compress(text) if ending == ".jsonl.gz" else text)
    (listed,) = load(tmp_path / "b")
    assert listed.train == lines.train
    assert listed.record["read_as"] == {f"sst2/train{ending}": "one JSON list"}
    path.write_bytes(gzip.compress(b"[\n") if ending == ".jsonl.gz" else b"[\n")
    assert "line 1: not JSON" in failure(tmp_path / "b")
