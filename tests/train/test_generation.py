"""Generation obeys what raycl says and nothing that a checkpoint brings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from raycl.methods.common.base import Sampling
from raycl.models.load import load_model
from raycl.spec import ModelSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
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


def test_the_length_of_an_answer_comes_from_the_labels(tmp_path: Path) -> None:
    """Whatever the limit for free text, a label task's answers have as many tokens as its longest label."""
    found = decoder(save_odd("llama", tmp_path / "llama"))
    labels = ("yes", "a label of several words")
    rows = (Example("0", "", PROMPTS[0], "", ("yes",)),)
    calls = []
    generate = found.model.backbone.model.generate
    object.__setattr__(found.model.backbone.model, "generate", lambda **how: calls.append(how) or generate(**how))
    found.score(Task("t", "t", "exact_match", labels, rows, rows, {}))
    longest = len(found.model.tokenizer(" a label of several words", add_special_tokens=False).input_ids) + 1
    assert [call["max_new_tokens"] for call in calls] == [longest]
