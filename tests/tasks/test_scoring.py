"""Scores of answers, against values worked out by hand."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycl.tasks.code import find_code
from raycl.tasks.scoring import (
    exact_match,
    label_metric,
    normalise,
    raw_match,
    rouge_l,
    rouge_l_unicode,
    score,
    text_metric,
)
from raycl.tasks.task import Example


def examples(*answers: tuple[str, ...]) -> list[Example]:
    """Examples with these answers."""
    return [Example(str(index), "", "", "", answer) for index, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("metric", "answer", "right", "expected"),
    [
        ("exact_match", "Red.", "red", 100),
        ("raw_match", "Red.", "red", 0),
        ("rouge_l", "the cars", "the car", 100),
        ("rouge_l_unicode", "красный дом", "красный дом", 100),
        ("token_f1", "the red car", "The car, it stops", 400 / 7),
        ("bleu", "a b c d e", "a b c d e", 100),
        ("chrf", "a b c d e", "a b c d e", 100),
    ],
)
def test_every_metric_has_its_name(metric: str, answer: str, right: str, expected: float) -> None:
    assert score(metric, [answer], examples((right,))) == pytest.approx(expected)


def test_a_function_is_found_where_the_task_says(tmp_path: Path) -> None:
    """And nowhere else: its name alone may mean another file."""
    (tmp_path / "half.py").write_text("def of(prediction, references):\n    return 0.5\n")
    found = find_code("half:of", str(tmp_path))
    assert score("half:of", ["x", "y"], examples(("x",), ("x",)), {"half:of": found}) == 50
    with pytest.raises(ValueError, match="give the task's `code`"):
        score("half:of", ["x"], examples(("x",)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  Good,\n film. ", "the good film"),
        ("Society & Culture", "society culture"),
        ("", ""),
        ("...", ""),
        ("Don't", "dont"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match() -> None:
    assert exact_match(" very Negative.", ["very negative"]) == 1.0
    assert exact_match("negative", ["very negative"]) == 0.0
    assert exact_match("the A", ["A"]) == 0.0
    assert exact_match("b", ["a", "B"]) == 1.0
    assert exact_match("", ["a"]) == 0.0


def test_an_answer_of_punctuation_is_not_met_by_nothing() -> None:
    """Normalising leaves nothing of it, so it is compared as it is."""
    assert exact_match("", ["+"]) == exact_match("-", ["+"]) == 0.0
    assert exact_match(" + ", ["+"]) == 1.0


def test_raw_match() -> None:
    assert raw_match("1", ["-1"]) == raw_match("Us", ["us"]) == raw_match("", ["+"]) == 0.0
    assert raw_match(" -1\n", ["1", "-1"]) == 1.0


@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        (("good", "very bad"), "exact_match"),
        (("积极", "消极"), "exact_match"),
        (("-1", "0", "1"), "raw_match"),
        (("+", "-"), "raw_match"),
        (("us", "US"), "raw_match"),
        (("yes", "?"), "raw_match"),
    ],
)
def test_labels_are_compared_by_what_tells_them_apart(labels: tuple[str, ...], metric: str) -> None:
    """Normalised, unless that makes two alike or leaves nothing of one. No label passes for another."""
    assert label_metric(labels) == metric
    for said in (*labels, ""):
        for label in labels:
            assert score(label_metric(labels), [said], examples((label,))) == 100 * (said == label)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("no", "yes", " yes"), "'yes', ' yes'"),
        (("no", "yes", "  "), "'  '"),
        (("a ", "b", "a"), "'a ', 'a'"),
    ],
)
def test_labels_that_only_white_space_tells_apart_are_refused(labels: tuple[str, ...], named: str) -> None:
    """No answer could be told from the other; the message names them and no others."""
    with pytest.raises(ValueError, match=f"^the labels {named} differ in white space only$"):
        label_metric(labels)


def test_rouge_l() -> None:
    # Longest common subsequence of 2 words; precision 2/3, recall 2/4.
    assert rouge_l("the cat sat", ["the big cat ran"]) == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert rouge_l("running dogs", ["runs dog"]) == pytest.approx(1.0)
    assert rouge_l("x", ["y", "x z"]) == pytest.approx(2 / 3)
    assert rouge_l("", ["y"]) == 0.0


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("Привет, мир", "привет мама", 0.5),
        ("हिन्दी में लिखा", "हिन्दी में", 0.8),
        ("今日は晴れ", "今日", 4 / 7),
        ("สวัสดี", "สวัส", 6 / 7),
        ("한국어 문장", "한국어", 2 / 3),
        ("café noir", "cafe noir", 0.5),
        ("+=", "+", 2 / 3),
    ],
)
def test_rouge_l_of_any_script(text: str, other: str, expected: float) -> None:
    """F-measures by hand: words, or single letters with their marks where a script has no spaces; signs where there is no
    word. The field's metric sees nothing of most of them."""
    assert rouge_l_unicode(other, [text]) == pytest.approx(expected)
    assert rouge_l_unicode(text, [text]) == 1.0


@given(st.text(string.printable), st.text(string.printable))
def test_rouge_l_of_ascii_text_is_the_fields(one: str, other: str) -> None:
    """Wherever it sees words at all."""
    if any(char.isalnum() for char in one) and any(char.isalnum() for char in other):
        assert rouge_l_unicode(one, [other]) == pytest.approx(rouge_l(one, [other]))


def test_a_text_is_compared_by_what_sees_its_words() -> None:
    """A few odd answers, or an accent here and there, leave the field's metric as it is."""
    english = ["a word"] * 99
    assert text_metric([]) == text_metric(english) == text_metric(["café, déjà vu", *english, "..."]) == "rouge_l"
    assert text_metric(["слово в 2020"] * 5 + english) == "rouge_l"
    assert text_metric(["слово в 2020"] * 6 + english) == text_metric(["今日は"]) == "rouge_l_unicode"


def test_score_is_a_mean_of_0_to_100() -> None:
    assert score("exact_match", ["a", "b", "c"], examples(("a",), ("x",), ("y", "C"))) == pytest.approx(200 / 3)
    assert score("rouge_l", ["x", "q"], examples(("x z",), ("r",))) == pytest.approx(100 / 3)


def test_score_refuses_what_has_no_mean() -> None:
    with pytest.raises(ValueError, match="0 predictions for 0 examples"):
        score("exact_match", [], [])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        score("exact_match", ["a"], examples(("a",), ("b",)))
    with pytest.raises(ValueError, match="allowed: exact_match, raw_match, rouge_l, rouge_l_unicode"):
        score("accuracy", ["a"], examples(("a",)))  # type: ignore[arg-type]
