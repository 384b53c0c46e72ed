"""Metrics of the table beside those of the papers: values by hand, several references, functions of the user's."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks.code import Code, find_code, require_code
from raycl.tasks.load import load_tasks
from raycl.tasks.scoring import METRICS, known_metric, score, token_f1
from raycl.tasks.task import Example
from tests.kit.streams import TEAM, write_csv, write_stream


def examples(*answers: tuple[str, ...]) -> list[Example]:
    """Examples with these references."""
    return [Example(str(i), "", "x", "", refs) for i, refs in enumerate(answers)]


def test_token_f1_by_hand() -> None:
    """Two of three and of four words in common: 2 * 2 / 7; repeated words count as often as in both; the best reference."""
    assert token_f1("the red car", ["The car, it stops"]) == pytest.approx(4 / 7)
    assert token_f1("a a b", ["a b b"]) == pytest.approx(4 / 6)
    assert token_f1("x", ["y", "x z"]) == pytest.approx(2 / 3)
    assert (token_f1("", ["+"]), token_f1("-", ["+"]), token_f1(" +", ["+"])) == (0, 0, 1)  # no words: as they are
    assert token_f1("很好", ["很差"]) == pytest.approx(0.5)


def test_bleu_of_all_answers_together() -> None:
    """Four words of which all but one bigram match: by the definition, precisions 3/4, 1/3 and smoothed zeros."""
    assert score("bleu", ["the cat sat on the mat"], examples(("the cat sat on the mat",))) == pytest.approx(100)
    perfect = score("bleu", ["a b c d e", "x"], examples(("a b c d e",), ("y", "x")))
    assert perfect == pytest.approx(100)
    short = score("bleu", ["a b c d"], examples(("a b c d e f",)))
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))  # all precisions 1, the brevity penalty alone


def test_chrf_by_hand() -> None:
    """`ab` against `ac`: of characters one of two is common, of pairs none of one; orders that neither has do not count.

    chrF averages precision and recall over the orders, (1/2 + 0) / 2, and with beta = 2 equal values stay as they are.
    """
    assert score("chrf", ["ab"], examples(("ac",))) == pytest.approx(25)
    assert score("chrf", ["ab", "q"], examples(("zz", "ab"), ("q",))) == pytest.approx(100)


def test_the_names_of_metrics() -> None:
    assert all(known_metric(name) == name for name in (*METRICS, "my.module:metric"))
    for name in ("accuracy", "module", "a:b:c", "a b:c", ":x"):
        with pytest.raises(ValueError, match="allowed: exact_match"):
            known_metric(name)


CODE = """
def first_letter(prediction, references):
    return float(any(prediction[:1] == one[:1] for one in references))
def wrong(prediction, references):
    return 7
def broken(prediction, references):
    raise KeyError("oh")
"""


def test_every_metric_tells_the_labels_apart(tmp_path: Path) -> None:
    """The further ones too: what normalising makes alike is compared as it is. Aliases of one label may be alike."""
    write_csv(tmp_path / "t.csv")
    alike = TEAM | {"data": "t.csv", "labels": [*TEAM["labels"], "Sales!"], "metric": ["rouge_l", "exact_match"]}
    (task,) = load_tasks(["team"], DataSpec(stream=write_stream(tmp_path, alike)))
    assert (task.metric, task.metrics) == ("rouge_l", ("raw_match",))
    named = TEAM | {"data": "t.csv", "aliases": {"sales": ["Sales"]}}
    assert load_tasks(["team"], DataSpec(stream=write_stream(tmp_path, named)))[0].metric == "exact_match"
    crossed = TEAM | {"data": "t.csv", "aliases": {"sales": ["Billing"]}}
    assert load_tasks(["team"], DataSpec(stream=write_stream(tmp_path, crossed)))[0].metric == "raw_match"


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found beside the stream's file; its source is known to the task; what fails or gives nonsense is named."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "scorers_of_this_test.py").write_text(CODE)
    write_csv(tmp_path / "t.csv")
    names = [f"scorers_of_this_test:{name}" for name in ("first_letter", "wrong", "broken", "absent")]
    stream = write_stream(tmp_path, TEAM | {"data": "t.csv", "metric": [names[0], "exact_match"]})
    (task,) = load_tasks(["team"], DataSpec(stream=stream, allow_code=True))
    assert task.metric == names[0]
    assert task.metrics == ("exact_match",)
    assert score(names[0], ["bolt", "s"], examples(("billing",), ("x", "y")), task.code) == 50
    require_code(task.code)
    with pytest.raises(DataError, match="is not the one that the run was planned with"):
        require_code({names[0]: Code(str(tmp_path), "0" * 64)})
    (tmp_path / "other").mkdir()
    for folder, value in (
        (tmp_path / "other", 1),
        (tmp_path, 0),
    ):  # another folder's file of that name; one that changed
        (folder / "scorers_of_this_test.py").write_text(CODE.replace("return float(", f"return {value} and float("))
        codes = {names[0]: find_code(names[0], str(folder))}
        assert score(names[0], ["bolt", "s"], examples(("billing",), ("x", "y")), codes) == 50 * value
        assert codes != task.code
    for name, words in zip(names[1:], ("gives 7.0", "KeyError: 'oh'", "has no function absent"), strict=True):
        with pytest.raises(DataError, match=words):
            score(name, ["x"], examples(("x",)), {name: find_code(name, str(tmp_path))})
    with pytest.raises(DataError, match="cannot be imported"):
        find_code("no_such_module_at_all:f", str(tmp_path))
    with pytest.raises(ValueError, match="give the task's `code`"):
        score(names[0], ["x"], examples(("x",)))
