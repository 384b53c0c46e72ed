"""The hub source, with tables made here in the shape of the public ones; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks import hub
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.hub import load_hub
from raycl.tasks.load import build_task, load_tasks
from raycl.tasks.rows import HubUnreachable, gather
from raycl.tasks.stream import Published

PAIR = {"premise": "p", "hypothesis": "h"}

# A row of each table, the value of its label, and the sentence and label it must become.
GOLDEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "yelp": ({"text": "t", "label": 0}, "Text: t\n", "very negative"),
    "amazon": ({"review_title": "a", "review_text": "b", "class_index": 5}, "Title: a\nText: b\n", "very positive"),
    "mnli": (PAIR | {"label": 1}, "sentence 1: p\nsentence 2: h", "neutral"),
    "cb": (PAIR | {"label": 1}, "sentence 1: p\nsentence 2: h", "contradiction"),
    "copa": (
        {"premise": "p", "question": "cause", "choice1": "x", "choice2": "y", "label": 0},
        'Which sentence is the cause of "p"? Choose one between A and B.\nA: x\nB: y',
        "A",
    ),
    "qqp": ({"question1": "a", "question2": "b", "label": 1}, "first sentence: a\nsecond sentence: b", "True"),
    "rte": ({"sentence1": "a", "sentence2": "b", "label": 1}, "sentence 1: a\nsentence 2: b", "contradiction"),
    "imdb": ({"text": "a {film}", "label": 1}, "a {film}", "Good"),
    "sst2": ({"sentence": "a film ", "label": 0}, "Text: a film ", "Bad"),
    "dbpedia": ({"title": "a", "content": " b", "label": 1}, "Title: a\nText:  b\n", "Educational Institution"),
    "agnews": ({"text": "t", "label": 3}, "Text: t\n", "Science or Technology"),
    "yahoo": (
        {"question_title": "a", "question_content": "b", "best_answer": "c", "topic": 9},
        "Title: a\nQuestion: b\nAnswer: c\n",
        "Politics & Government",
    ),
    "multirc": (
        {"paragraph": "p", "question": "q", "answer": "a", "label": 1},
        "paragraph: p\nquestion: q\ncandidate answer: a",
        "True",
    ),
    "boolq": ({"question": "q", "passage": "p", "label": 0}, "question: q\npassage: p", "False"),
    "wic": ({"word": "w", "sentence1": "a", "sentence2": "b", "label": 0}, "word: w\na\nb", "False"),
}


def fake(rows: list[dict[str, Any]], calls: list[Any] | None = None) -> Callable[..., Any]:
    """A `load_dataset` that gives the same rows for every split."""
    from datasets import Dataset

    def load_dataset(path: str, name: str | None = None, *, split: str, revision: str | None = None) -> Any:
        if calls is not None:
            calls.append((path, name, split, revision))
        return Dataset.from_list(rows)

    return load_dataset


def raising(error: Exception) -> Callable[..., Any]:
    """A `load_dataset` that fails."""

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    return load_dataset


def test_every_task_of_the_long_benchmark_has_a_table() -> None:
    assert set(GOLDEN) == set(open_catalogue().stream("long"))
    for name in GOLDEN:
        entry = open_catalogue().tasks[name]
        assert isinstance(entry.data, Published)
        assert entry.data.hub is not None
        assert set(entry.data.hub.labels.values()) == set(entry.labels or ()), name


@pytest.mark.parametrize("name", list(GOLDEN))
def test_rows_become_the_benchmarks_sentences_and_labels(name: str) -> None:
    row, sentence, label = GOLDEN[name]
    raw = load_hub(open_catalogue().tasks[name], 0, fake([row]))
    assert raw.train.rows[0].text == sentence
    assert raw.train.rows[0].answers == (label,)
    data = open_catalogue().tasks[name].data
    assert list(raw.labels or ()) == open_catalogue().tasks[name].labels
    assert isinstance(data, Published)
    assert data.hub is not None
    assert raw.details["hub"]["id"] == data.hub.hub


def test_a_yahoo_question_without_a_body_has_no_title_field() -> None:
    row = {"question_title": "a", "question_content": "", "best_answer": None, "topic": 0}
    raw = load_hub(open_catalogue().tasks["yahoo"], 0, fake([row]))
    assert raw.train.rows[0].text == "Question: a\nAnswer: \n"


def test_train_takes_so_many_a_class_and_test_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TRAIN_PER_CLASS", 3)
    monkeypatch.setattr(hub, "TEST_CAP", 7)
    rows = [{"sentence": f"s{index} ", "label": int(index % 5 == 0)} for index in range(40)]
    calls: list[Any] = []
    raw = load_hub(open_catalogue().tasks["sst2"], 1, fake(rows, calls))
    assert sorted(row.answers[0] for row in raw.train.rows) == ["Bad"] * 3 + ["Good"] * 3
    assert len(raw.test.rows) == 7
    assert calls == [("nyu-mll/glue", "sst2", "train", None), ("nyu-mll/glue", "sst2", "validation", None)]
    assert load_hub(open_catalogue().tasks["sst2"], 1, fake(rows)).train == raw.train
    assert load_hub(open_catalogue().tasks["sst2"], 2, fake(rows)).train != raw.train


def test_a_hub_task_is_rendered_like_the_benchmark_file() -> None:
    source = lambda info: load_hub(info, 42, fake([GOLDEN["sst2"][0]]))  # noqa: E731
    task = build_task(open_catalogue().tasks["sst2"], source, DataSpec(source="hub"))
    assert task.train[0].prompt == (
        "What is the sentiment of the following paragraph? Choose one from the option.\n"
        "Option: Good, Bad \nText: a film \nAnswer:"
    )
    assert task.record["source"] == "hub"
    assert task.record["hub"]["test_split"] == "validation"


def test_a_script_is_read_from_the_hubs_parquet_files() -> None:
    inner = fake([GOLDEN["boolq"][0]])
    revisions: list[str | None] = []

    def load_dataset(*args: Any, revision: str | None = None, **kwargs: Any) -> Any:
        revisions.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found super_glue.py")
        return inner(*args, **kwargs)

    assert load_hub(open_catalogue().tasks["boolq"], 0, load_dataset).train.rows
    assert revisions == [None, "refs/convert/parquet"] * 2


def test_an_unreachable_hub_is_explained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", raising(ConnectionError("Couldn't reach it")))
    with pytest.raises(DataError) as caught:
        load_tasks(["agnews", "yelp"], DataSpec(source="hub"))
    message = str(caught.value)
    assert message.startswith("1 problem")
    for part in ("fancyzhx/ag_news", "--data FOLDER", "RAYCL_DATA", "--order demo", "works offline"):
        assert part in message


@pytest.mark.parametrize("error", [ValueError("no such config"), RuntimeError("boom"), FileNotFoundError("gone")])
def test_other_failures_name_the_id_and_the_cause(error: Exception) -> None:
    with pytest.raises(DataError, match=r"aps/super_glue.*" + str(error)) as caught:
        load_hub(open_catalogue().tasks["wic"], 0, raising(error))
    assert not isinstance(caught.value, HubUnreachable)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sentence": "a", "label": 7}, "label '7'"),
        ({"sentence": "a", "label": -1}, "label '-1'"),
        ({"sentence": "a", "label": "x"}, "label 'x'"),
        ({"sentence": "a", "label": None}, "got None"),
        ({"sentence": None, "label": 0}, None),
        ({"text": "a", "label": 0}, "'sentence'"),
        ({"sentence": "a"}, "column 'label'"),
    ],
)
def test_a_table_of_another_form_is_refused(row: dict[str, Any], expected: str | None) -> None:
    if expected is None:  # an empty column is an empty text, as in the released preprocessing
        assert load_hub(open_catalogue().tasks["sst2"], 0, fake([row])).train.rows[0].text == "Text: "
        return
    with pytest.raises(DataError, match=expected):
        load_hub(open_catalogue().tasks["sst2"], 0, fake([row]))


def test_superni_is_not_on_the_hub() -> None:
    with pytest.raises(DataError, match=r"not offered on the hub.*RAYCL_DATA"):
        load_hub(open_catalogue().tasks["task1572_samsum_summary"], 0, fake([]))


def test_a_hub_that_does_not_answer_is_asked_once() -> None:
    """Of the splits of a task too: each would wait for the same time-out. What was wrong before is said beside it."""

    def fails(error: DataError) -> None:
        raise error

    asked: list[int] = []
    steps = [lambda: fails(DataError("one")), lambda: fails(HubUnreachable("two")), lambda: asked.append(1)]
    with pytest.raises(HubUnreachable, match="one\ntwo"):
        gather(steps)
    assert not asked
