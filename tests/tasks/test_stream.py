"""The form of a stream file: what is understood, and that everything wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.errors import SpecError
from raycl.tasks.catalogue import open_catalogue, parse_stream
from raycl.tasks.orders import resolve_order
from raycl.tasks.stream import Files, TaskEntry

TASK: dict[str, Any] = {"name": "team", "data": "t.csv", "input": "Text", "answer": "Team", "split": {"test": 0.2}}


def write(folder: Path, *tasks: dict[str, Any], **fields: Any) -> str:
    """A stream file with these tasks; its path."""
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump({"stream": "support", "tasks": list(tasks), **fields}))
    return str(path)


def refused(folder: Path, *tasks: dict[str, Any], **fields: Any) -> str:
    """The message of the SpecError that opening such a stream raises."""
    with pytest.raises(SpecError) as caught:
        open_catalogue(write(folder, *tasks, **fields))
    return str(caught.value)


def test_defaults_and_categories_lie_below_a_task(tmp_path: Path) -> None:
    """A task wins over its category, and this over the stream's defaults."""
    one = TASK | {"category": "mail"}
    other = TASK | {"name": "other", "category": "mail", "instruction": "Own."}
    third = TASK | {"name": "third"}
    stream = write(
        tmp_path,
        *(one, other, third),
        defaults={"instruction": "All.", "licence": "MIT"},
        categories={"mail": {"instruction": "Mail."}},
    )
    tasks = open_catalogue(stream).tasks
    assert [tasks[name].instruction for name in ("team", "other", "third")] == ["Mail.", "Own.", "All."]
    assert tasks["third"].licence == "MIT"


def test_paths_start_at_the_streams_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program stands; addresses and absolute paths stay."""
    data = {"train": ["a.csv", "s3://bucket/b.csv"], "test": "/abs/c.csv"}
    (tmp_path / "streams").mkdir()
    stream = write(tmp_path / "streams", TASK | {"data": data})
    monkeypatch.chdir(tmp_path)
    found = open_catalogue("streams/my.yaml").tasks["team"].data
    assert open_catalogue(stream).tasks["team"].data == found
    assert isinstance(found, Files)
    assert found.splits() == {"train": [str(tmp_path / "streams/a.csv"), "s3://bucket/b.csv"], "test": ["/abs/c.csv"]}


def test_labels_as_a_mapping_and_from_data(tmp_path: Path) -> None:
    mapped = TASK | {"labels": {0: "no", 1: "yes", "2": "yes"}}
    free = TASK | {"name": "free", "labels": "from_data", "metric": "token_f1"}
    tasks = open_catalogue(write(tmp_path, mapped, free)).tasks
    assert tasks["team"].labels == ["no", "yes"]
    assert tasks["team"].values == {"0": "no", "1": "yes", "2": "yes"}
    assert tasks["free"].labels is None and tasks["free"].labels_from_data
    assert tasks["free"].metric == ["token_f1"]
    assert open_catalogue(write(tmp_path, TASK | {"labels": [0, 1.5]})).tasks["team"].labels == ["0", "1.5"]


def test_orders_of_a_stream(tmp_path: Path) -> None:
    """The stream's name is its default order, others stand behind a slash; built-in orders and tasks are there too."""
    tasks = [TASK | {"name": name} for name in ("a", "b")] + [{"use": "agnews", "train_examples": 5}]
    stream = write(tmp_path, *tasks, orders={"default": ["b", "a"], "nightly": ["a", "agnews"]})
    assert resolve_order(None, stream) == ("support", ("b", "a"))
    assert resolve_order("nightly", stream) == resolve_order("support/nightly", stream)
    (tmp_path / "both").mkdir()
    both = write(tmp_path / "both", TASK, orders={"demo": ["team"], "1": ["team"], "support": ["team"]})
    assert [resolve_order(name, both)[0] for name in ("demo", "1")] == ["support/demo", "support/1"]
    assert resolve_order(None, both)[0] == "support"
    assert resolve_order("nightly", stream) == ("support/nightly", ("a", "agnews"))
    assert resolve_order("a,yelp", stream) == ("custom:a,yelp", ("a", "yelp"))
    assert resolve_order("1", stream)[0] == "std-1"
    assert open_catalogue(stream).tasks["agnews"].train_examples == 5
    assert resolve_order(None, write(tmp_path, *tasks)) == ("support", ("a", "b", "agnews"))
    assert resolve_order(None) == resolve_order("demo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": None}, "`input` and one of `answer` and `answers`"),
        ({"answers": ["Team"]}, "`input` and one of `answer` and `answers`"),
        ({"messages": "m"}, "leave `input`, `answer` and `answers` out"),
        ({"split": None}, "nothing to score on"),
        ({"labels": ["a", "a"]}, "labels must be different"),
        ({"labels": [True, False]}, "put the words in quotes"),
        ({"labels": ["a", " "]}, "none of them empty"),
        ({"labels": ["a", "b"], "aliases": {"c": ["d"]}}, "no label; allowed: a, b"),
        ({"labels": ["a", "b"], "aliases": {"a": ["b"]}}, "is itself a label"),
        ({"labels": ["a", "b"], "aliases": {"a": ["x"], "b": ["x"]}}, "two labels"),
        ({"metric": "accuracy"}, "allowed: exact_match"),
        ({"metric": ["chrf", "chrf"]}, "stands twice"),
        ({"input": "{{ a"}, "not valid"),
        ({"input": "{{ range(9) }}"}, "calls"),
        ({"prompt": {"head": "{% include 'x' %}"}}, "not allowed here"),
        ({"split": {"test": 0.6, "validation": 0.4}}, "nothing to train on"),
        ({"data": {"files": "x"}}, "expected a path, {train"),
        ({"data": None}, "expected a path, {train"),
        ({"labels": {0: ["a"], 1: "b"}}, "one label, a text, for each raw value"),
        ({"category": ["mail"]}, "category"),
        ({"name": "agnews"}, "is a built-in task"),
        ({"data": {"hub": "tickets"}}, "data"),
        ({"name": "../x"}, "name"),
        ({"weight": -1}, "0 or more"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_does_not_fit_is_named_with_its_task(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    message = refused(tmp_path, TASK | change)
    assert words in message
    assert "my.yaml" in message
    assert f"task {(TASK | change)['name']!r}" in message


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, TASK | {"metric": "x"}, TASK | {"name": "two", "chat": "perhaps"}, name="y")
    assert "3 problems" in message
    assert all(words in message for words in ("task 'team'", "task 'two'", "name"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"orders": {"x": ["nobody"]}}, "'nobody' is no task of the stream; allowed: team"),
        ({"orders": {"x": ["team", "team"]}}, "each once"),
        ({"stream": "long"}, "built-in stream"),
        ({"stream": "std-1"}, "built-in stream or order"),
        ({"defaults": ["metric"]}, "defaults: expected a mapping"),
        ({"categories": {"mail": {"chat": True}}}, "categories.mail: no task has this category"),
        ({"categories": {"mail": "chat"}}, "categories.mail: expected a mapping"),
    ],
)
def test_orders_and_names_are_checked(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, TASK, **fields)
    assert "stands twice" in refused(tmp_path, TASK, TASK)


def test_a_built_in_task_is_used_and_not_changed(tmp_path: Path) -> None:
    wrong = [{"use": "agnews", "labels": ["a", "b"]}, {"use": "yelp", "train_examples": -5}, {"use": "snipets"}]
    message = refused(tmp_path, *wrong, TASK | {"metric": "x"})
    assert all(words in message for words in ("my.yaml", "4 problems", "'labels' cannot be set", "'x'; allowed"))
    assert "task 'yelp': train_examples" in message
    assert "'snipets' is no built-in task (nearest: 'snippets')" in message


@pytest.mark.parametrize("text", ["stream: [", "- a", "stream: a\nstream: b\ntasks: []", ""])
def test_what_is_no_stream_is_refused(text: str, tmp_path: Path) -> None:
    """Broken YAML, a list, a key that stands twice, nothing; and a file that is not there."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"x\.yaml"):
        open_catalogue(str(tmp_path / "x.yaml"))
    with pytest.raises(SpecError, match="cannot be read"):
        open_catalogue(str(tmp_path / "y.yaml"))


def test_every_built_in_task_says_what_it_is() -> None:
    """The benchmarks are streams in the form that users write."""
    tasks = open_catalogue().tasks
    assert len(tasks) == 34
    assert all(isinstance(entry, TaskEntry) and entry.licence for entry in tasks.values())
    assert {open_catalogue().home(name) for name in tasks} == {"long", "superni", "demo"}


def test_the_form_has_no_room_for_code() -> None:
    """YAML's tags of Python objects are refused."""
    with pytest.raises(SpecError, match="not valid YAML"):
        parse_stream("stream: !!python/object/apply:os.system ['true']\ntasks: []", "x")
