"""Generation obeys what raycl says and nothing that a checkpoint brings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raycl.methods.common.base import Route, Sampling
from raycl.models.load import load_model
from raycl.sections import ModelSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder, Written
from raycl.train.workers import Workers
from tests.kit.odd_models import edit, ends_at_once, save_odd

PROMPTS = [f"the story of the film number {i} is a good one and the end is sad" for i in range(6)]
BROUGHT = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "min_new_tokens": {"min_new_tokens": 5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": list(range(3, 300))},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 0},
}


def decoder(folder: Path) -> Decoder:
    """A model that answers without a method on it."""
    model = load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu")
    return Decoder(model, None, Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8), 4, Workers())


def answers(folder: Path) -> list[object]:
    """What a model answers to PROMPTS, as free text."""
    rows = tuple(Example(str(i), "", text, "", ("none",)) for i, text in enumerate(PROMPTS))
    task = Task("free", "free", "rouge_l", None, rows, rows, {})
    return [row["prediction"] for row in decoder(folder).score(task).predictions]


def obeyed(folder: Path, settings: dict[str, object]) -> bool:
    """Whether transformers itself, left to the checkpoint, would answer one of PROMPTS in another way."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = decoder(folder).model.tokenizer
    for text in PROMPTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        plain = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        own = model.generate(ids, max_new_tokens=8, eos_token_id=2, pad_token_id=0, **settings)
        if plain.tolist() != own.tolist():
            return True
    return False


def likeliest(folder: Path) -> int:
    """The token that a model puts after the first prompt."""
    model = decoder(folder).model
    ids = torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])
    return int(model.backbone.model(input_ids=ids).logits[0, -1].argmax())


@pytest.mark.parametrize("name", BROUGHT)
def test_settings_of_a_checkpoint_change_no_answer(tmp_path: Path, name: str) -> None:
    """Answers and written texts are those of the same model without them."""
    plain = save_odd("llama", tmp_path / "plain")
    if name == "min_new_tokens":
        ends_at_once(plain, likeliest(plain))
    assert obeyed(plain, BROUGHT[name])
    brought = Path(shutil.copytree(plain, tmp_path / "brought"))
    edit(brought / "generation_config.json", **BROUGHT[name])
    assert answers(brought) == answers(plain)
    for how in (Sampling(8), Sampling(8, top_k=5), Sampling(8, repetition_penalty=1.5)):
        one, two = (
            decoder(folder).write(PROMPTS, how, torch.Generator().manual_seed(1)) for folder in (plain, brought)
        )
        assert one == two


@pytest.mark.parametrize("readable", [True, False])
def test_the_length_of_an_answer_comes_from_the_labels(tmp_path: Path, readable: bool) -> None:
    """Whatever the limit for free text, a label task's answers have as many tokens as its longest label: no fewer without an
    end token, and no more."""
    found = decoder(save_odd("llama", tmp_path / "llama"))
    if not readable:
        found = replace(found, model=replace(found.model, backbone=replace(found.model.backbone, readable=0)))
    labels = ("yes", "a label of several words")
    rows = tuple(Example(str(i), "", text, "", ("yes",)) for i, text in enumerate(PROMPTS))
    scored = found.score(Task("t", "t", "exact_match", labels, rows, rows, {}))
    longest = len(found.model.tokenizer(" a label of several words", add_special_tokens=False).input_ids) + 1
    free = [found.answer([row], tokens)[0].text for row in rows for tokens in (longest - 1, longest)]
    assert [row["prediction"] for row in scored.predictions] == free[1::2] != free[::2]
    assert not all(scored.ended)


class Letters:
    """A tokenizer of one token per letter; ids below 32 are special."""

    pad_token_id, eos_token_id = 0, 1

    def __call__(self, text, add_special_tokens=True):
        return SimpleNamespace(input_ids=[ord(one) for one in text])

    def batch_decode(self, rows, skip_special_tokens=False):
        return ["".join(chr(id) for id in row if id >= 32 or not skip_special_tokens) for row in rows.tolist()]


class Echo(torch.nn.Module):
    """A model that continues a prompt by its last letter and a drawn digit, with a space on both sides."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.calls = []

    def generate(self, input_ids, attention_mask, **how):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append((input_ids, attention_mask, how))
        drawn = torch.randint(48, 58, (len(input_ids), 1))
        space, end = torch.full_like(drawn, 32), torch.ones_like(drawn)
        return torch.cat([input_ids, space, input_ids[:, -1:], drawn, space, end], dim=1)


def echo(batch_size=2, workers=None, method=None):
    """A decoder around it, in training mode before it is asked."""
    model = Echo().train()
    on = torch.device("cpu")
    backbone = SimpleNamespace(model=model, dtype=torch.float32, device=on, encoder_decoder=False, readable=0)
    loaded = SimpleNamespace(backbone=backbone, tokenizer=Letters())
    return Decoder(loaded, method, Encoder(Letters(), False, 64, 8), batch_size, workers or Workers()), model


GREEDILY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "pad_token_id": 0,
    "eos_token_id": [1],
}


@pytest.mark.parametrize(
    ("sampling", "how"),
    [
        (Sampling(5), {"max_new_tokens": 5}),
        (Sampling(7, repetition_penalty=1.3), {"max_new_tokens": 7, "repetition_penalty": 1.3}),
        (
            Sampling(3, top_k=4),
            {"max_new_tokens": 3, "do_sample": True, "top_k": 4, "top_p": 1.0, "temperature": 1.0},
        ),
    ],
)
def test_every_setting_of_a_written_text_is_explicit(sampling, how):
    """Each call says all of it; the model is in eval mode, prompts are padded on the left, texts come in their order."""
    ours, model = echo()
    texts = ours.write(["ab", "abcd", "abc"], sampling, torch.Generator().manual_seed(3))
    assert [call[2] for call in model.calls] == [GREEDILY | how] * 2
    assert [text[0] for text in texts] == ["b", "d", "c"] and all(len(text) == 2 for text in texts)
    ids, mask, _ = model.calls[0]
    assert ids.tolist() == [[97, 98, 99, 100], [0, 97, 98, 99]] and mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_every_batch_of_texts_shows_that_work_moves_on():
    """To whoever watches for a process that stands still."""
    beats = []
    echo(workers=Workers(beat=lambda: beats.append(1)))[0].write(list("abc"), Sampling(2), torch.Generator())
    assert len(beats) == 2


def test_written_texts_depend_on_their_generator_alone():
    """On its seed, not on what was drawn before; and what is drawn afterwards does not depend on them."""
    prompts = [f"{letter}" for letter in "abcdefgh"]

    def written(seed, before):
        torch.manual_seed(before)
        texts = echo()[0].write(prompts, Sampling(5, top_k=3), torch.Generator().manual_seed(seed))
        return texts, torch.rand(1).item()

    assert written(1, 5) == written(1, 5) and written(1, 5)[0] == written(1, 6)[0] != written(2, 5)[0]
    torch.manual_seed(5)
    assert written(1, 5)[1] == written(2, 5)[1]
    torch.manual_seed(5)
    assert torch.rand(1).item() == written(1, 5)[1]


OTHER = {
    "task": "other",
    "probability": 0.5,
    "runner_up": None,
    "runner_up_probability": 0.0,
    "known": True,
    "alone": True,
}


def test_a_score_is_greedy_and_its_rows_are_complete(monkeypatch):
    """Shared out over the workers and put together in the task's order; the length is the longest label's and its end."""
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.full(size, 33))

    class First(Workers):
        """Worker 0 of 2; the other one answered its share with x."""

        def gather(self, value):
            return [value, [Written("x", Route("other", 0.5))]]

    rows = tuple(Example(f"id {i}", "", text, "", ("A!", "zz")) for i, text in enumerate(("a", "q", "bb")))
    ours, model = echo(workers=First(0, 2))
    scored = ours.score(Task("t", "t", "exact_match", ("A!", "long"), rows, rows, {}))
    assert scored.predictions == [
        {"id": "id 0", "prediction": "a!", "answers": ["A!", "zz"]},
        {"id": "id 1", "prediction": "x", "answers": ["A!", "zz"], "route": OTHER},
        {"id": "id 2", "prediction": "b!", "answers": ["A!", "zz"]},
    ]
    assert scored.score == pytest.approx(100 / 3)
    assert [call[2] for call in model.calls] == [GREEDILY | {"max_new_tokens": len(" long") + 1}]


def test_the_method_is_conditioned_on_every_batch():
    """Before it, once, on what the model is then given."""
    seen = []
    method = SimpleNamespace(condition=seen.append, soft_prompt=lambda: None, routes=lambda: None)
    ours, model = echo(method=method)
    ours.write(["a", "b", "c"], Sampling(2), torch.Generator())
    assert [inputs.ids.tolist() for inputs in seen] == [call[0].tolist() for call in model.calls]
    assert len(seen) == 2 and all(inputs.labels is None for inputs in seen)


@pytest.mark.parametrize("alone", [True, False])
def test_an_answer_whose_route_is_the_same_is_not_made_again(monkeypatch, alone):
    """Those of changed routes are, and all of them where several branches answer together."""
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.full(size, 33))
    now = {
        "a": Route("one", 0.9, alone=alone),
        "b": Route("two", 0.8, alone=alone),
        "c": Route("one", 0.7, None, 0.0, False, alone),
    }
    seen = []
    method = SimpleNamespace(
        condition=lambda inputs: seen.append(inputs.ids),
        soft_prompt=lambda: None,
        routes=lambda: [now[chr(int(row[-1]))] for row in seen[-1]],
    )
    ours, model = echo(method=method)
    rows = tuple(Example(text, "", text, "", ("A!",)) for text in "abc")
    earlier = [{"prediction": f"old {text}", "route": {"task": "one", "known": True}} for text in "abc"]
    scored = ours.score(Task("t", "t", "exact_match", ("A!", "B!"), rows, rows, {}), earlier)
    made = [chr(int(row[-1])) for call in model.calls for row in call[0]]
    assert sorted(made) == (["b", "c"] if alone else ["a", "b", "c"])
    assert scored.predictions[0]["prediction"] == ("old a" if alone else "a!")
    assert [row["route"]["task"] for row in scored.predictions] == ["one", "two", "one"]
    assert [row["prediction"] for row in scored.predictions[1:]] == ["b!", "c!"]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_tokens_are_counted_up_to_the_end(family: str, model_folders: dict[str, Path]) -> None:
    """Of each row of a batch, against the likeliest tokens one by one: one of them made the end token ends the rows that
    have it, each at its own place; the others come to the limit."""
    limit, one = 6, decoder(model_folders[family])
    examples = [Example("", "", text[: 12 + 9 * i], "", ("",)) for i, text in enumerate(PROMPTS)]
    rows = [greedy(one, example.prompt, limit) for example in examples]
    end = rows[0][2]
    one.model.tokenizer.eos_token = one.model.tokenizer.convert_ids_to_tokens(end)
    for row, found in zip(rows, one.answer(examples, limit), strict=True):
        expected = (row.index(end) + 1, True) if end in row else (limit, False)
        assert (found.tokens, found.ended) == expected
    assert {end in row for row in rows} == {True, False}


def greedy(one: Decoder, prompt: str, limit: int) -> list[int]:
    """The likeliest continuation of a prompt, a forward pass for each token."""
    model, ids = one.model.backbone.model, one.model.tokenizer(prompt).input_ids
    written: list[int] = []
    with torch.no_grad():
        for _ in range(limit):
            if one.model.backbone.encoder_decoder:
                fed = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[0, *written]])}
            else:
                fed = {"input_ids": torch.tensor([ids + written])}
            written.append(int(model(**fed).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_answers_that_change_with_the_batch_are_among_those_that_are_told(precision, tmp_path):
    """Of a model whose logits are nearly flat: no more change than were told. In fp32 nothing is told, and none changes."""
    spec = ModelSpec.model_validate({"name": str(save_odd("llama", tmp_path)), "precision": precision})
    model = load_model(spec, "cpu")
    words = ("the", "film", "is", "good", "a", "sad", "end", "of", "story", "it", "day", "night", "dog", "cat", "runs")
    rows = tuple(
        Example(str(n), "", " ".join(words[n * step % len(words)] for step in range(2, 3 + n % 7)), " so:", ("x",))
        for n in range(120)
    )
    encoder = Encoder(model.tokenizer, False, 64, 8)
    likely = Decoder(model, None, encoder, 8, Workers()).answer(rows[:20], 2)
    labels = tuple(dict.fromkeys(one.text for one in likely if one.text))
    task = Task("t", "t", "exact_match", labels, rows, rows, {})
    one, many = (Decoder(model, None, encoder, batch, Workers()).score(task) for batch in (1, 64))
    pairs = zip(one.predictions, many.predictions, strict=True)
    changed = 100 * sum(first["prediction"] != second["prediction"] for first, second in pairs) / len(rows)
    if precision == "fp32":
        assert (one.doubtful, many.doubtful, changed) == (None, None, 0)
    else:
        assert one.doubtful is not None and many.doubtful is not None
        assert 0 < one.doubtful < 100 and changed <= one.doubtful + many.doubtful
