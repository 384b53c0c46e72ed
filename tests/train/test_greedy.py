"""Whole answers that are checked at once are those that decoding token by token gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raycl.models.load import LoadedModel, load_model
from raycl.sections import ModelSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder, shared_start
from raycl.train.generation import Decoder
from raycl.train.greedy import close, follow
from raycl.train.workers import Workers
from tests.kit.odd_models import FAMILIES, REFUSED, save_odd

VOCABULARY, END = 4, 0
TOKENS = st.integers(0, VOCABULARY - 1)
TABLES = st.lists(TOKENS, min_size=8, max_size=40)
"""What a made-up model says: its token after a row is drawn from the table by all that stands before."""


class Table:
    """A reading of prompts whose model is a table."""

    def __init__(self, table: Sequence[int], prompts: Sequence[int]) -> None:
        self.table, self.prompts, self.passes = table, prompts, 0

    def says(self, prompt: int, row: Sequence[int]) -> int:
        """The likeliest token behind a prompt and a row of tokens."""
        place = prompt
        for token in row:
            place = place * VOCABULARY + token + 1
        return self.table[place % len(self.table)]

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B, W, V): one on the likeliest token after each token."""
        width = max(map(len, rows))
        found = torch.zeros(len(rows), width, VOCABULARY)
        for index, (prompt, row) in enumerate(zip(self.prompts, rows, strict=True)):
            for place in range(len(row)):
                found[index, place, self.says(prompt, row[: place + 1])] = 1
        return found

    @property
    def first(self) -> Tensor:
        """(B, V) of the first token."""
        return torch.stack([torch.eye(VOCABULARY)[self.says(prompt, ())] for prompt in self.prompts])

    def follow(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """As a reading of a real model."""
        self.passes += 1
        return self.logits(rows)

    def one_by_one(self, prompt: int, length: int) -> list[int]:
        """Token by token."""
        row: list[int] = []
        while len(row) < length and (not row or row[-1] != END):
            row.append(self.says(prompt, row))
        return row


@given(
    table=TABLES,
    prompts=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    words=st.lists(st.lists(TOKENS, min_size=1, max_size=4), max_size=5),
    length=st.integers(1, 6),
)
def test_the_answers_are_those_of_one_token_at_a_time(
    table: list[int], prompts: list[int], words: list[list[int]], length: int
) -> None:
    """Whatever is expected, and never in more passes."""
    reading: Any = Table(table, prompts)
    expected = [(*word, END) for word in words]
    found = [ids for ids, _ in follow(reading, reading.first, expected, [END], length)]
    alone = [reading.one_by_one(prompt, length) for prompt in prompts]
    assert found == alone
    assert reading.passes <= max(map(len, alone)) - 1


def test_an_expected_answer_takes_one_pass() -> None:
    """Of three tokens and an end; one by one there would be three."""
    reading: Any = Table([1], [0])
    reading.says = lambda prompt, row: (1, 2, 3, END)[len(row)]
    assert follow(reading, reading.first, [(1, 3, END), (1, 2, 3, END)], [END], 8) == [([1, 2, 3, END], False)]
    assert reading.passes == 2  # the first answer that begins with 1 is another one
    reading.passes = 0
    assert follow(reading, reading.first, [(1, 2, 3, END), (1, 3, END)], [END], 8) == [([1, 2, 3, END], False)]
    assert reading.passes == 1


def test_answers_that_rounding_may_turn_are_told() -> None:
    """Neighbours in bf16 are 1/128 of their size apart at most; what stands behind an answer's end counts for nothing."""
    assert close(torch.tensor([[8.0, 7.94, 0.0], [8.0, 7.93, 0.0], [-8.0, -8.06, -9.0]])) == [True, False, True]
    reading: Any = Table([1], [0, 1, 2])
    reading.says = lambda prompt, row: (1, 2, END, 3)[min(len(row), 3)]
    sure = reading.logits

    def logits(rows: Sequence[Sequence[int]]) -> Tensor:
        found = sure(rows)
        found[1, 1] = torch.tensor([1.0, 0.0, 0.0, 0.995])  # behind 1, 2: the end token, all but 3
        found[2, 2:] = 1.0  # behind the end token, which nobody asks for
        return found

    reading.logits = logits
    found = follow(reading, reading.first, [(1, 2, END)], [END], 4)
    assert found == [([1, 2, END], False), ([1, 2, END], True), ([1, 2, END], False)]


def decoder(model: LoadedModel, readable: bool = True, batch: int = 3) -> Decoder:
    """Without a method; unless `readable`, as a model that must go token by token."""
    if not readable:
        model = replace(model, backbone=replace(model.backbone, readable=0))
    return Decoder(model, None, Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8), batch, Workers())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in (*REFUSED, "mamba")])
def test_every_family_answers_as_it_generates(family: str, tmp_path: Path) -> None:
    """Prompts of many lengths with and without a common beginning; labels that some of them are answered with, some begin
    with, and some have nothing to do with."""
    model = load_model(ModelSpec(name=str(save_odd(family, tmp_path / family)), precision="fp32"), "cpu")
    ends = ["the film is good", "a sad end of the story", "it", "number 7 and number 8", "of the end", "sad"]
    for head in ("", "say what the story of the film is like, in one of the words below "):
        rows = tuple(Example(str(i), head, text, " answer:", ("x",)) for i, text in enumerate(ends))
        plain = decoder(model, readable=False)
        said = [one.text for one in plain.answer(rows, 4)]
        labels = tuple(dict.fromkeys(word for word in (*said[:3], said[3][:-1], "no such word") if word.strip()))
        task = Task("t", "t", "exact_match", labels, rows, rows, {})
        alone, read = plain.score(task), decoder(model).score(task)
        assert [row["prediction"] for row in read.predictions] == [row["prediction"] for row in alone.predictions]
        assert read.ended == alone.ended


def test_a_common_beginning_is_read_once(tmp_path: Path) -> None:
    """And each prompt's rest once, with one more pass for the answers that follow a label."""
    model = load_model(ModelSpec(name=str(save_odd("llama", tmp_path / "llama")), precision="fp32"), "cpu")
    rows = tuple(Example(str(i), "the story of the film number ", "9" * (i + 1), "", ("x",)) for i in range(6))
    label = decoder(model).answer(rows[:1], 3)[0].text
    seen: list[tuple[int, ...]] = []
    model.backbone.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    decoder(model, batch=6).score(Task("t", "t", "exact_match", (label, "other"), rows, rows, {}))
    shared = shared_start(decoder(model).encoder.encode(rows))
    assert seen[0] == (1, shared) and shared > 8
    longest = max(len(one.prompt) for one in decoder(model).encoder.encode(rows))
    assert seen[1] == (6, longest - shared)
    assert {shape[0] for shape in seen[2:]} == {6} and len(seen) >= 3


def test_what_prompts_share_leaves_each_of_them_a_token() -> None:
    """Also where one is the beginning of another, and where there is but one."""
    rows = [Encoded((1, 2, 3, 4), ()), Encoded((1, 2, 3), ()), Encoded((1, 2, 3, 5), ())]
    assert [shared_start(rows), shared_start(rows[:1]), shared_start([rows[0], rows[2]]), shared_start([])] == [
        2,
        3,
        3,
        0,
    ]
