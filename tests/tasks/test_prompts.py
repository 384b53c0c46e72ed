"""Prompts, character by character, against strings written by hand from the released code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.prompts import Renderer
from raycl.tasks.rows import Row

QUOREF = "task002_quoref_answer_generation"


def prompt(style: str, name: str, text: str, definition: str = "", reveal: bool = False) -> str:
    """The whole prompt of a text."""
    info = open_catalogue().tasks[name]
    labels = tuple(info.labels or ())
    return "".join(Renderer(info, style, labels, reveal)(Row(text, ("x",), definition)))  # type: ignore[arg-type]


def test_o_lora_sentiment() -> None:
    assert prompt("o_lora", "sst2", "Text: dull . ") == (
        "What is the sentiment of the following paragraph? Choose one from the option.\n"
        "Option: Good, Bad \n"
        "Text: dull . \n"
        "Answer:"
    )


def test_o_lora_topic() -> None:
    assert prompt("o_lora", "agnews", "Title: A\nText: B\n") == (
        "What is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports, Business, Science or Technology \n"
        "Title: A\nText: B\n\nAnswer:"
    )


def test_o_lora_inference_with_task_lines() -> None:
    assert prompt("o_lora", "mnli", "sentence 1: P\nsentence 2: H", reveal=True) == (
        "Task:NLI\nDataset:MNLI\n"
        'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
        "Choose one from the option.\n"
        "Option: neutral, entailment, contradiction \n"
        "sentence 1: P\nsentence 2: H\nAnswer:"
    )


def test_o_lora_boolq_keeps_the_published_dataset_name() -> None:
    assert prompt("o_lora", "boolq", "question: q\npassage: p", reveal=True) == (
        "Task:BoolQA\nDataset:BoolQA\n"
        "According to the following passage, is the question true or false? Choose one from the option.\n"
        "Option: True, False \nquestion: q\npassage: p\nAnswer:"
    )


def test_o_lora_word_in_context_and_pairs() -> None:
    assert prompt("o_lora", "wic", "word: w\na\nb") == (
        "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
        "Choose one from the option.\nOption: True, False \nword: w\na\nb\nAnswer:"
    )
    assert prompt("o_lora", "qqp", "first sentence: a\nsecond sentence: b") == (
        'Whether the "first sentence" and the "second sentence" have the same meaning? Choose one from the option.\n'
        "Option: False, True \nfirst sentence: a\nsecond sentence: b\nAnswer:"
    )


def test_o_lora_copa_has_neither_instruction_nor_options() -> None:
    assert prompt("o_lora", "copa", "Which one?\nA: a\nB: b") == "Which one?\nA: a\nB: b\nAnswer:"


def test_long_sequence() -> None:
    assert prompt("long_sequence", "sst2", "Text: dull . ", "Judge the text.\n") == (
        "Judge the text.\nText: dull . \nOutput: "
    )
    assert prompt("long_sequence", "copa", "Which one?") == "Which one?\nOutput: "


def test_superni() -> None:
    assert prompt("superni", "task1572_samsum_summary", "Ann: hi", " Summarise it. ") == (
        "Definition: Summarise it.\n\nNow complete the following example -\nInput: Ann: hi\nOutput: "
    )
    assert prompt("superni", "task1572_samsum_summary", "Ann: hi", "D", reveal=True).startswith(
        "Task:CL\nDataset:task1572_samsum_summary\nDefinition: D\n\n"
    )


def test_instructions_are_the_published_ones(benchmark_data: Path) -> None:
    published = json.loads((benchmark_data / "instruction_config.json").read_text())
    ours = {entry.category: entry.instruction for entry in open_catalogue().tasks.values()}
    for category, entries in published.items():
        assert ours[category] + "\n" == entries[0]["instruction"]
    assert ours["COPA"] == ""


@pytest.mark.parametrize(
    ("style", "name", "text", "body", "tail"),
    [
        ("o_lora", "multirc", "paragraph: P\nquestion: q\ncandidate answer: c", "paragraph: P", "\nquestion: q"),
        ("o_lora", "mnli", "sentence 1: P\nsentence 2: H", "sentence 1: P", "\nsentence 2: H"),
        ("long_sequence", "qqp", "first sentence: a\nsecond sentence: b", "first sentence: a", "\nsecond sentence: b"),
        ("superni", QUOREF, "Passage: P \nQuestion: who?", "Passage: P ", "\nQuestion: who?"),
        ("o_lora", "imdb", "a film", "a film", "\nAnswer:"),
    ],
)
def test_what_must_survive_a_cut_is_outside_the_body(style: str, name: str, text: str, body: str, tail: str) -> None:
    info = open_catalogue().tasks[name]
    parts = Renderer(info, style, tuple(info.labels or ()))(Row(text, ("x",), "D"))  # type: ignore[arg-type]
    assert parts[1] == body
    assert parts[2].startswith(tail)
    assert parts[2].endswith(("\nAnswer:", "\nOutput: "))


def test_a_text_with_braces_or_without_its_cue_stays_whole() -> None:
    assert "{0} {x}" in prompt("o_lora", "mnli", "{0} {x}")
