"""Examples to batches: cuts, answers, padding, and who gets which row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycl.adapters.backbone import IGNORE
from raycl.methods.common.rows import Row
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder, by_length


def example(body: str, answer: str = "very bad", head: str = "t1head ", tail: str = " t1tail") -> Example:
    """One example."""
    return Example("0", head, body, tail, (answer,))


def encoder(tiny, source: int = 64, target: int = 8) -> Encoder:
    """The tiny model's encoder."""
    return Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, source, target)


def words(tiny, ids) -> list[str]:
    """The tokens behind ids."""
    return tiny.tokenizer.convert_ids_to_tokens(list(ids))


def test_tokens_of_a_short_example(tiny, family):
    """A prompt is head, body and tail with the tokenizer's own special token; an answer ends with the end token."""
    row = encoder(tiny).encode([example("t1w1 t1w2")])[0]
    prompt = ["t1head", "t1w1", "t1w2", "t1tail"]
    assert words(tiny, row.prompt) == (["<s>", *prompt] if family == "llama" else [*prompt, "</s>"])
    assert words(tiny, row.answer) == ["very", "bad", "</s>"]


@pytest.mark.parametrize("limit", [6, 5, 4, 3])
def test_a_long_prompt_loses_the_end_of_its_body(tiny, family, limit):
    """Head and tail stay whole, and so do the special tokens; the body is cut from its end to exactly the limit."""
    body = [f"t1w{i}" for i in range(8)]
    row = encoder(tiny, source=limit).encode([example(" ".join(body))])[0]
    kept = ["t1head", *body[: limit - 3], "t1tail"]
    assert words(tiny, row.prompt) == (["<s>", *kept] if family == "llama" else [*kept, "</s>"])
    assert words(tiny, row.answer) == ["very", "bad", "</s>"]


def test_a_prompt_at_the_limit_is_not_cut(tiny, monkeypatch):
    """Exactly as many tokens as allowed pass unchanged, and its parts are not put together anew; one more is cut."""
    body = "t1w1 t1w2 t1w3"
    whole = encoder(tiny).encode([example(body)])[0].prompt
    assert len(encoder(tiny, source=len(whole) - 1).encode([example(body)])[0].prompt) == len(whole) - 1
    monkeypatch.delattr(Encoder, "_cut")
    assert encoder(tiny, source=len(whole)).encode([example(body)])[0].prompt == whole


def test_head_and_tail_that_are_too_long_lose_the_front(tiny, family):
    """Where instruction and cue alone exceed the limit, the end of the prompt, with the cue, is what stays."""
    long = example("t1w1", head="t1w2 t1w3 t1w4 ", tail=" t1w5 t1tail")
    row = encoder(tiny, source=3).encode([long])[0]
    assert words(tiny, row.prompt) == (["t1w4", "t1w5", "t1tail"] if family == "llama" else ["t1w5", "t1tail", "</s>"])


def test_a_long_answer_keeps_its_end_token(tiny):
    """An answer is cut to the limit, end token included."""
    row = encoder(tiny, target=3).encode([example("t1w1", "t1w1 t1w2 t1w3 t1w4")])[0]
    assert words(tiny, row.answer) == ["t1w1", "t1w2", "</s>"]


def test_longest_answer_counts_the_end_token(tiny):
    """Generation may stop after the longest label and its end token."""
    assert encoder(tiny).longest_answer(["good", "very bad"]) == 3
    assert encoder(tiny).longest_answer(["good"]) == 2


def test_an_answer_of_a_decoder_stands_behind_a_space_but_in_a_chat():
    """ " b" and "b" are tokens of their own, and here the first of them is two."""
    ours = Encoder(BytePairs(), False, 64, 8)
    ours.tokenizer.table = {" b": [7, 2], "b": [3]}
    assert (ours.answer_length("b"), ours.answer_length("b", chat=True)) == (3, 2)


class BytePairs:
    """A tokenizer that merges: a space belongs to the next word, and "a:b" is one token where "a:" stands alone."""

    eos_token_id = 99
    pad_token_id = 0
    table = {"a:": [1], "a: b": [1, 2], " b": [2], "b": [3], "x": [4], "x b": [5], "x ": [6]}  # noqa: RUF012

    def __call__(self, text, add_special_tokens=True):
        return type("Ids", (), {"input_ids": list(self.table[text])})


def test_a_decoder_only_answer_is_the_continuation_of_its_prompt():
    """The answer's tokens are those that follow the prompt in the joint text (" b"), not those of the bare answer ("b");
    where the joint text splits the prompt otherwise, the answer after a space is tokenised alone."""
    ours = Encoder(BytePairs(), False, 64, 8)
    joint, split = ours.encode([Example("1", "", "a:", "", ("b",)), Example("2", "", "x", "", ("b",))])
    assert joint.answer == (2, 99)
    assert split.answer == (2, 99)


def test_all_of_a_batch_is_on_one_device(tiny):
    """Ids, masks, labels, stages and weights."""
    rows = encoder(tiny).encode([example("t1w1"), example("t1w1 t1w2")])
    rows = [replace(rows[0], stage=1, weight=0.5), rows[1]]
    inputs = encoder(tiny).collate(rows, "meta")
    parts = (inputs.ids, inputs.mask, inputs.prompt_mask, inputs.labels, inputs.stages, inputs.weights)
    assert {part.device.type for part in parts} == {"meta"}


def test_a_tokenizer_without_a_token_says_which(tiny):
    """Padding and end token must be one id."""
    for name, kind in (("pad_token_id", "padding"), ("eos_token_id", "end")):
        letters = type("Letters", (Ends,), {name: None})()
        with pytest.raises(ValueError, match=f"no {kind} token of one id"):
            ours = Encoder(letters, True, 64, 8)
            ours.collate(ours.encode([example("x")]), "cpu")


def test_an_answer_is_read_back_without_marks_and_spaces():
    """As generation leaves it: special tokens skipped, white space around it gone."""

    class Spaced(Ends):
        def decode(self, ids, skip_special_tokens=False):
            return " ".join(["", *map(chr, ids), ""]) if skip_special_tokens else "<s>"

    assert Encoder(Spaced(), True, 64, 8).read_back("ab") == "a b"


class Ends:
    """A tokenizer of one token per letter that appends its end token (99) to every text with special tokens."""

    eos_token_id = 99
    pad_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return type("Ids", (), {"input_ids": [ord(one) for one in text] + [99] * add_special_tokens})


@pytest.mark.parametrize("limit", [64, 6])
def test_an_end_token_stands_where_an_answer_ends_and_nowhere_else(limit):
    """A decoder goes on after its prompt, so its prompt has none, cut or whole; an encoder's ends with one, cut or whole."""
    row = Example("1", "ab", "cdefgh", "ij", ("k",))
    whole = [ord(one) for one in "abcdefghij"]
    (decoder,) = Encoder(Ends(), False, limit, 8).encode([row])
    assert list(decoder.prompt) == (whole if limit == 64 else [ord(one) for one in "abcdij"])
    assert decoder.answer == (ord(" "), ord("k"), 99)
    (encoder_,) = Encoder(Ends(), True, limit, 8).encode([row])
    assert list(encoder_.prompt) == ([*whole, 99] if limit == 64 else [ord(one) for one in "abcij"] + [99])
    assert encoder_.answer == (ord("k"), 99)


def test_a_label_is_as_long_and_reads_as_it_will_be_generated(tiny):
    """Length with the end token, uncut; the text without special tokens."""
    ours = encoder(tiny, target=2)
    assert ours.answer_length("very bad") == 3
    assert ours.read_back("very bad") == "very bad"
    assert ours.read_back("</s>") == ""
    closed, free = (Task("t", "t", "exact_match", labels, (), (), {}) for labels in (("good", "very bad"), None))
    assert ours.generated(closed) == 3 and ours.generated(free) == 2
    assert ours.generated(replace(closed, aliases=("very very bad",))) == 4


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_decoder_only_batches_are_padded_on_the_left(tiny, family):
    """Prompt and answer are one row; labels are the answer only; masks tell prompt, answer and padding apart."""
    rows = encoder(tiny).encode([example("t1w1 t1w2", "good"), example("t1w1", "very bad")])
    inputs = encoder(tiny).collate(rows, "cpu")
    assert inputs.ids.tolist() == [[*rows[0].prompt, *rows[0].answer], [*rows[1].prompt, *rows[1].answer]]
    short = encoder(tiny).collate([rows[0], Encoded((1, 5), (6, 2))], "cpu")
    pad = [0] * 3
    assert short.ids[1].tolist() == [*pad, 1, 5, 6, 2]
    assert short.mask[1].tolist() == [*pad, 1, 1, 1, 1]
    assert short.prompt_mask[1].tolist() == [*pad, 1, 1, 0, 0]
    assert short.labels[1].tolist() == [IGNORE] * 5 + [6, 2]
    bare = encoder(tiny).collate([rows[0], Encoded((1, 5), (6, 2))], "cpu", answers=False)
    assert bare.labels is None and bare.ids[1].tolist() == [0, 0, 0, 1, 5] and torch.equal(bare.mask, bare.prompt_mask)


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_encoder_decoder_batches_are_padded_on_the_right(tiny, family):
    """Prompts and answers are apart, both padded on the right."""
    inputs = encoder(tiny).collate([Encoded((5, 6, 7), (8, 2)), Encoded((5,), (8, 9, 2))], "cpu")
    assert inputs.ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert inputs.mask.tolist() == inputs.prompt_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs.labels.tolist() == [[8, 2, IGNORE], [8, 9, 2]]


def test_a_row_may_have_an_answer_length_of_its_own(tiny):
    """`tokens` of a row stands in for the limit of all other answers."""
    long = "t1w1 t1w2 t1w3 t1w4"
    rows = [Row(example("t1w1", long), tokens=tokens) for tokens in (None, 5, 2)]
    assert [len(row.answer) for row in encoder(tiny, target=3).encode_rows(rows)] == [3, 5, 2]


def test_batches_by_length_cover_everything_longest_first():
    """Every index once, lengths falling, the longest batch first."""
    rows = [Encoded(tuple(range(length)), ()) for length in (3, 9, 1, 9, 4)]
    batches = by_length(rows, 2)
    assert batches == [[1, 3], [4, 0], [2]]


def test_batches_of_so_many_tokens_by_hand() -> None:
    """Of 18 padded tokens two prompts of 9, then four of 4 at most; one of 20 stands alone."""
    rows = [Encoded(tuple(range(length)), ()) for length in (3, 9, 1, 9, 4, 20)]
    assert by_length(rows, 2, tokens=18) == [[5], [1, 3], [4, 0, 2]]
    assert by_length(rows, 2, tokens=8) == [[5], [1], [3], [4, 0], [2]]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100))
def test_batches_of_tokens_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    """Each row once; a batch is within the budget or one row; and a batch could not have taken the next row in too."""
    rows = [Encoded((1,) * length, ()) for length in lengths]
    batches = by_length(rows, 1, tokens)
    assert sorted(place for batch in batches for place in batch) == list(range(len(rows)))
    padded = [len(batch) * max(lengths[place] for place in batch) for batch in batches]
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    assert all((len(batch) + 1) * max(lengths[place] for place in batch) > tokens for batch in batches[:-1])


def test_filler_rows_weigh_nothing(tiny, toy_task, run_stage):
    """Five examples in batches of eight: the logged loss and the trained weights do not depend on the filler."""
    task = toy_task(1, distinct=5, repeats=1, spread=3)
    params = {"name": "sin_lora", "rank": 2, "alpha": 4}
    filled = run_stage(tiny, params, [task], batch_size=8, epochs=3)
    fitting = run_stage(tiny, params, [task], batch_size=5, epochs=3)
    for first, second in zip(filled.log, fitting.log, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    for path, a in filled.part.branch.a.items():
        assert torch.allclose(a, fitting.part.branch.a[path], atol=1e-4)


def test_a_micro_batch_of_filler_only_is_harmless(tiny, toy_task, run_stage):
    """Three examples in batches of eight, two at a time: the last micro-batches hold no answer, and training agrees with
    the batch in one piece."""
    task = toy_task(1, distinct=3, repeats=1, spread=3)
    params = {"name": "sin_lora", "rank": 2, "alpha": 4}
    cut = run_stage(tiny, params, [task], batch_size=8, micro_batch_size=2, epochs=3)
    whole = run_stage(tiny, params, [task], batch_size=8, epochs=3)
    for first, second in zip(cut.log, whole.log, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    for path, a in cut.part.branch.a.items():
        assert torch.allclose(a, whole.part.branch.a[path], atol=1e-4)


def test_encoding_is_the_same_for_every_answer_in_the_list(tiny):
    """The first accepted answer is the target; the others change nothing."""
    one = example("t1w1", "good")
    two = replace(one, answers=("good", "very bad"))
    assert encoder(tiny).encode([one]) == encoder(tiny).encode([two])


def bodies(tiny, row: Encoded) -> list[str]:
    """The tokens that a row says are its body's."""
    start, end = row.body
    return words(tiny, row.prompt[start:end])


def test_a_row_says_where_its_body_stands(tiny):
    """Whole, cut, cut to nothing, without head or tail; head and tail may have several words."""
    body = [f"t1w{i}" for i in range(5)]
    long = example(" ".join(body), head="t1w6 t1head ", tail=" t1w7 t1tail")
    for limit, kept in ((64, body), (10, body), (7, body[:2]), (5, []), (3, [])):
        (row,) = encoder(tiny, source=limit).encode([long])
        assert bodies(tiny, row) == kept and len(row.prompt) == min(limit, 10)
    (bare,) = encoder(tiny).encode([example("t1w1 t1w2", head="", tail="")])
    assert set(bodies(tiny, bare)) - {"<s>", "</s>"} == {"t1w1", "t1w2"}


class Merges:
    """A tokenizer of pairs of letters: what stands at a boundary may be one token with its neighbour."""

    eos_token_id = 99
    pad_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return type(
            "Ids", (), {"input_ids": [int.from_bytes(text[i : i + 2].encode()) for i in range(0, len(text), 2)]}
        )


@pytest.mark.parametrize(
    ("head", "body", "span"), [("abcd", "efgh", (2, 4)), ("abc", "defgh", (1, 4)), ("abcd", "efg", (2, 5))]
)
def test_a_token_that_the_body_shares_is_the_bodys(head, body, span):
    """ "ab" "cd" "ef" "gh" "ij": with the head "abc", "cd" has a letter of the body; a tail "hij" that splits otherwise
    alone ("hi" "j") is told from the body only as far as both split alike, which here is nowhere."""
    tail = "abcdefghij"[len(head + body) :]
    (row,) = Encoder(Merges(), False, 64, 8).encode([Example("1", head, body, tail, ("k",))])
    assert row.body == span


@pytest.mark.parametrize("answers", [True, False])
def test_the_mask_of_the_bodies_marks_their_tokens(tiny, answers):
    """In a padded batch, with and without the answers."""
    encoded = encoder(tiny).encode([example("t1w1 t1w2 t1w3"), example("t1w4")])
    inputs = encoder(tiny).collate(encoded, "cpu", answers)
    marked = [words(tiny, row[keep].tolist()) for row, keep in zip(inputs.ids, inputs.body_mask.bool(), strict=True)]
    assert marked == [["t1w1", "t1w2", "t1w3"], ["t1w4"]]
    bare = encoder(tiny).collate([Encoded((4, 5), (6,))], "cpu", answers)
    assert bare.body_mask is None and torch.equal(bare.text_mask, bare.prompt_mask)
