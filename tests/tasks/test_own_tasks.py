"""Tasks of one's own: the same rows are the same task in whatever form they are kept; splits, labels, chats, weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks import stored
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task, union
from tests.kit.streams import ROWS, TEAM, WRITERS, write_csv, write_jsonl, write_stream

HEAD = "{{ instruction }}\nOptions: {{ labels | join(', ') }}\n"
"""The plain layout's beginning, written out."""


def load(folder: Path, task: dict[str, Any], **data: Any) -> Task:
    """One task of a stream in `folder`."""
    return load_tasks([task["name"]], DataSpec(stream=write_stream(folder, task), **data))[0]


def failure(folder: Path, task: dict[str, Any], **data: Any) -> str:
    """The message of the DataError that loading raises."""
    with pytest.raises(DataError) as caught:
        load(folder, task, **data)
    return str(caught.value)


@pytest.fixture
def team(tmp_path: Path) -> Task:
    """The task from CSV."""
    write_csv(tmp_path / "t.csv")
    return load(tmp_path, TEAM | {"data": "t.csv"})


def test_a_row_is_rendered_as_the_stream_says(team: Task) -> None:
    """Instruction, options, text, cue; only the text is in the part that may be cut."""
    assert (team.metric, team.labels) == ("exact_match", ("billing", "support", "sales"))
    by_text = {example.body: example for example in (*team.train, *team.test)}
    assert set(by_text) == {row["Ticket Text"] for row in ROWS}
    one = by_text[ROWS[4]["Ticket Text"]]
    assert one.head == "Which team?\nOptions: billing, support, sales\n"
    assert (one.tail, one.answers) == ("\nAnswer:", ("support",))
    assert team.record["source"] == "stream"
    assert len(next(iter(team.record["files"].values()))) == 64


@pytest.mark.parametrize("name", WRITERS)
def test_the_form_of_the_file_is_no_part_of_the_task(name: str, team: Task, tmp_path: Path) -> None:
    """CSV, TSV, JSON, JSON lines, Parquet, Arrow: the same fingerprints, so the same stages; a changed row makes others."""
    WRITERS[name](tmp_path / name)
    same = load(tmp_path, TEAM | {"data": name})
    assert same.train_fingerprint == team.train_fingerprint
    assert same.test_fingerprint == team.test_fingerprint
    rows = [row | {"Ticket Text": "another"} if i == 3 else row for i, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "other.jsonl", rows)
    other = load(tmp_path, TEAM | {"data": "other.jsonl"})
    assert (other.train_fingerprint, other.test_fingerprint) != (team.train_fingerprint, team.test_fingerprint)


def test_archives_globs_and_saved_folders_give_the_same_rows(team: Task, tmp_path: Path) -> None:
    from datasets import Dataset

    packed, parts = tmp_path / "t.jsonl.gz", tmp_path / "parts"
    write_jsonl(tmp_path / "t.jsonl")
    packed.write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    parts.mkdir()
    write_csv(parts / "1.csv", ROWS[:10])
    write_csv(parts / "2.csv", ROWS[10:])
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    forms: list[Any] = ["t.jsonl.gz", "parts/*.csv", {"saved": "saved"}]
    for data in forms:
        assert load(tmp_path, TEAM | {"data": data}).train_fingerprint == team.train_fingerprint


def test_rows_that_are_added_move_no_other(team: Task, tmp_path: Path) -> None:
    """Shares are told by a row's content; the examples that were there stay as they are, their ids too."""
    write_csv(tmp_path / "more.csv", [*ROWS, *({**row, "Ticket Text": f"new {i}"} for i, row in enumerate(ROWS))])
    more = load(tmp_path, TEAM | {"data": "more.csv"})
    assert more.train[: len(team.train)] == team.train
    assert more.test[: len(team.test)] == team.test
    assert len(more.train) + len(more.test) == 60
    assert load(tmp_path, TEAM | {"data": "t.csv", "split": {"test": 0.3, "seed": 8}}).test != team.test


def test_where_a_prompt_may_be_cut_is_part_of_the_task(team: Task, tmp_path: Path) -> None:
    """Equal prompts that are cut at other places are trained otherwise where they are too long."""
    found = [team, load(tmp_path, TEAM | {"data": "t.csv", "cue": " "})]
    found.append(load(tmp_path, TEAM | {"data": "t.csv", "prompt": {"head": HEAD, "tail": "\nAnswer:"}}))
    assert found[0].train[0].prompt == found[1].train[0].prompt and found[0].train[0].tail != found[1].train[0].tail
    assert len({task.train_fingerprint for task in found}) == 2
    assert len({task.test_fingerprint for task in found}) == 2
    assert len({union([task]).train_fingerprint for task in found}) == 2


def test_an_alias_moves_no_row(team: Task, tmp_path: Path) -> None:
    """The side of a row is told by what stands in the table, and not by what else counts as right."""
    named = load(tmp_path, TEAM | {"data": "t.csv", "aliases": {"sales": ["shop"]}})
    assert [one.id for one in named.train] == [one.id for one in team.train]
    assert [one.prompt for one in named.test] == [one.prompt for one in team.test]
    assert ("sales", "shop") in {one.answers for one in named.test}
    assert named.test_fingerprint != team.test_fingerprint


def test_labels_from_the_data_differ_in_more_than_their_unicode_form(tmp_path: Path) -> None:
    """Two that look alike are a mistake of the table: no model could be right on both."""
    forms = ("caf\u00e9", "cafe\u0301", "tea")
    write_jsonl(tmp_path / "t.jsonl", [row | {"Team": forms[i % 3]} for i, row in enumerate(ROWS)])
    message = failure(tmp_path, TEAM | {"data": "t.jsonl", "labels": "from_data"})
    assert "'cafe\\u0301', 'caf\\xe9' are one text in two Unicode forms" in message


def test_layouts_with_a_definition_have_the_instruction(tmp_path: Path, team: Task) -> None:
    for style in ("superni", "long_sequence"):
        assert "Which team?\n" in load(tmp_path, TEAM | {"data": "t.csv", "prompt": style}).train[0].head


def test_a_label_that_is_a_raw_value_of_another_is_no_raw_value(tmp_path: Path) -> None:
    """Of {1: 2, 2: 3} a raw 3 is nothing, and neither the label 3."""
    task = {"name": "t", "data": "t.jsonl", "input": "x", "answer": "y", "split": {"test": 0.4}}
    write_jsonl(tmp_path / "t.jsonl", [{"x": f"text {i}", "y": i % 3 + 1} for i in range(12)])
    assert "label '3'" in failure(tmp_path, task | {"labels": {1: 2, 2: 3}})
    assert "allowed: 1, 2" in failure(tmp_path, task | {"labels": {1: 2, 2: 3}})
    found = load(tmp_path, task | {"labels": {1: 2, 2: 3}, "drop": [3]})  # as a raw value, and as a label
    assert {one.answers for one in (*found.train, *found.test)} == {("2",)}


def test_a_group_stays_on_one_side_and_validation_has_its_own(tmp_path: Path) -> None:
    rows = [row | {"customer": i // 3} for i, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = TEAM | {"data": "t.jsonl", "split": {"test": 0.3, "validation": 0.3, "group": "customer", "seed": 1}}
    parts = [load(tmp_path, task), load(tmp_path, task, test_split="validation")]
    customer = {row["Ticket Text"]: row["customer"] for row in rows}
    sides = [{customer[one.body] for one in split} for split in (parts[0].train, parts[0].test, parts[1].test)]
    assert set.union(*sides) == set(range(10)) and sum(map(len, sides)) == 10
    assert parts[0].train == parts[1].train
    assert parts[1].test[0].id == "team/validation/0"


def test_files_of_their_own_for_each_split(tmp_path: Path) -> None:
    for name, part in (("train", ROWS[:12]), ("test", ROWS[12:18]), ("dev", ROWS[18:])):
        write_csv(tmp_path / f"{name}.csv", part)
    data = {"train": "train.csv", "test": "test.csv", "validation": "dev.csv"}
    task = {name: value for name, value in TEAM.items() if name != "split"} | {"data": data}
    one, dev = load(tmp_path, task), load(tmp_path, task, test_split="validation")
    assert (len(one.train), len(one.test), len(dev.test)) == (12, 6, 12)
    assert len(load(tmp_path, task | {"train_examples": 6}, train_examples=9).train) == 6
    assert len(load(tmp_path, task | {"train_examples": 6}, train_examples=3).train) == 3


def test_labels_by_value_aliases_and_rows_that_are_dropped(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "y": value} for i, value in enumerate([0, 1, 1, 0, -1, 1, 0, 1])]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = {"name": "t", "data": "t.jsonl", "input": "text", "answer": "y", "split": {"test": 0.4}}
    mapped = task | {"labels": {0: "no", 1: "yes"}, "aliases": {"yes": ["yep"]}, "drop": ["-1"]}
    found = load(tmp_path, mapped)
    assert {one.answers for one in (*found.train, *found.test)} == {("no",), ("yes", "yep")}
    assert found.record["dropped"]["train"] == {"label '-1'": 1}
    assert found.closed == ("no", "yes", "yep")
    assert load(tmp_path, task | {"labels": "from_data"}).labels == ("-1", "0", "1")
    assert load(tmp_path, task | {"labels": "from_data"}).metric == "raw_match"  # normalising makes -1 and 1 alike


def test_several_references_templates_and_metrics(tmp_path: Path) -> None:
    rows = [{"a": f"a{i}", "b": i, "refs": [f"x{i}", f"y{i}"], "more": None if i % 2 else "z"} for i in range(10)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = {
        "name": "t",
        "data": "t.jsonl",
        "input": "{{ a }}/{{ b }}",
        "answers": ["refs", "more"],
        "split": {"test": 0.4},
    }
    found = load(tmp_path, task | {"metric": ["rouge_l", "chrf"], "max_answer_tokens": 5})
    by_text = {one.body: one for one in (*found.train, *found.test)}
    assert by_text["a3/3"].answers == ("x3", "y3")
    assert by_text["a4/4"].answers == ("x4", "y4", "z")
    assert (found.metric, found.metrics, found.answer_tokens) == ("rouge_l", ("chrf",), 5)


def test_chats_and_weights(tmp_path: Path) -> None:
    """The last message is the answer, the one before it the text; those before stay as they were."""
    chats = [
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"q{i}"},
            {"role": "assistant", "content": f"r{i}"},
        ]
        for i in range(10)
    ]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [[{"from": names[turn["role"]], "value": turn["content"]} for turn in chat] for chat in chats]
    for name, column in (("a", chats), ("b", shared)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"m": chat, "w": i} for i, chat in enumerate(column)])
    task = {"name": "t", "data": "a.jsonl", "messages": "m", "weight": "w", "split": {"test": 0.4}}
    one, other = load(tmp_path, task), load(tmp_path, task | {"data": "b.jsonl"})
    assert one.train_fingerprint == other.train_fingerprint
    example = one.train[0]
    number = int(example.body[1:])
    assert (example.chat, example.answers, example.weight) == ((("system", "Be short."),), (f"r{number}",), number)
    assert (example.head, example.tail) == ("", "")


BAD = [
    ({"input": "Text"}, "no column 'Text'; allowed: Ticket Text, Team, Reply"),
    ({"answer": "team"}, "no column 'team'"),
    ({"input": "{{ Team + gone }}"}, "the template of `input` fails ('gone' is undefined)"),
    ({"labels": ["billing", "support"]}, "line 7, label 'sales'"),
    ({"weight": "Reply"}, "column 'Reply': got 'We look at 0'; allowed: a number of at least 0"),
    ({"split": {"test": 0.001}}, "split: leaves no rows for test of the 30"),
    ({"split": {"group": "nobody"}}, "no column 'nobody'"),
    ({"messages": "Reply", "input": None, "answer": None, "labels": None}, "a list of at least two messages"),
    ({"metric": "scorers:right"}, "allow it with --allow-code"),
    ({"data": "foo://x/t.csv"}, "foo://x/t.csv: cannot be looked at (Protocol not known: foo)"),
    ({"data": "none.csv"}, "none.csv: is empty; allowed: a header line"),
    ({"data": "ragged.jsonl"}, "ragged.jsonl, line 3: not JSON"),
    ({"data": "ragged.jsonl"}, "ragged.jsonl, line 1, column 'Ticket Text': got ''"),
    ({"data": {"saved": "saved", "train": "train", "test": "test"}}, "saved: holds one table without splits"),
    ({"prompt": {"head": "{{ Team }}"}}, "task team, prompt: a template fails ('Team' is undefined)"),
    ({"labels": "from_data", "aliases": {"sales": ["billing"]}}, "the alias 'billing' is itself a label"),
    ({"labels": "from_data", "aliases": {"shop": ["x"]}}, "aliases of 'shop', which is no answer in the data"),
    ({"data": "gone.csv"}, "gone.csv: there is no such file"),
    ({"data": "my.yaml"}, "the ending '.yaml' says no format"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_what_is_wrong_with_the_data_is_named(change: dict[str, Any], words: str, team: Task, tmp_path: Path) -> None:
    """With file, line, column, what is allowed; at most three rows, the others counted."""
    from datasets import Dataset

    (tmp_path / "none.csv").touch()
    empty = json.dumps({"Ticket Text": "", "Team": "sales"})
    (tmp_path / "ragged.jsonl").write_text(f'{empty}\n{empty}\n{{"Ticket Text": \n')
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    message = failure(tmp_path, TEAM | {"data": "t.csv"} | change)
    assert words.replace("line 7, label", "line 7: label") in message
    assert message.count("next step:") <= 4


def test_rows_go_to_disk_where_they_are_many(team: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is the same, whatever is held in memory, and travels by the name of its file."""
    import pickle

    monkeypatch.setattr(stored, "IN_MEMORY", 5)
    many = load(tmp_path, TEAM | {"data": "t.csv"}, train_examples=12)
    assert not isinstance(many.train, tuple)
    monkeypatch.undo()
    few = load(tmp_path, TEAM | {"data": "t.csv"}, train_examples=12)
    assert tuple(many.train) == few.train
    assert many.train_fingerprint == few.train_fingerprint
    assert tuple(pickle.loads(pickle.dumps(many)).train) == few.train
    assert json.dumps(many.record) == json.dumps(few.record)
