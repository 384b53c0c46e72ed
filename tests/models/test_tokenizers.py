"""Tokenizers as they come: with or without padding, begin and end tokens, prepended or not, padded on either side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.models.load import LoadedModel, load_model
from raycl.sections import ModelSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from tests.kit.odd_models import FAMILIES, REFUSED, save_odd, with_tokenizer

PROMPTS = [" ".join(["film", "story", "year", "actors", "sad", "good"][: 1 + i % 6]) + f" {i}" for i in range(7)]
"""Of several lengths."""
NEW = 6


@dataclass(frozen=True)
class Variant:
    """A tokenizer: the special tokens it names, what it puts around a text, and the side that it pads."""

    names: tuple[str, ...] = ("pad", "bos", "eos")
    around: str = "<s> $A"
    side: str = "right"


VARIANTS = {
    "all, bos prepended": Variant(),
    "padded on the left": Variant(side="left"),
    "bos not prepended": Variant(around="$A"),
    "no pad": Variant(names=("bos", "eos")),
    "no bos": Variant(names=("pad", "eos"), around="$A"),
    "no eos": Variant(names=("pad", "bos")),
    "no pad, no eos": Variant(names=("bos",), side="left"),
    "eos appended": Variant(around="$A </s>"),
    "bos and eos around": Variant(around="<s> $A </s>", side="left"),
    "nothing": Variant(names=(), around="$A"),
}


def decoder_of(model: LoadedModel, batch: int) -> Decoder:
    """Answers of a model alone, `batch` prompts at a time."""
    return Decoder(model, None, Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, NEW), batch, Workers())


def answers(model: LoadedModel, batch: int) -> list[str]:
    """What a model answers to PROMPTS."""
    rows = tuple(Example(str(i), "", text, "", ("none",)) for i, text in enumerate(PROMPTS))
    scored = decoder_of(model, batch).score(Task("free", "free", "rouge_l", None, rows, rows, {}))
    return [row["prediction"] for row in scored.predictions]


def by_transformers(model: LoadedModel) -> list[str]:
    """The same by transformers alone, one prompt after another, without padding."""
    net: Any = model.backbone.model
    texts = []
    for prompt in PROMPTS:
        ids = model.tokenizer(prompt).input_ids
        if not model.backbone.encoder_decoder and ids[-1] == 2:
            ids = ids[:-1]
        out = net.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)[0]
        new = out if model.backbone.encoder_decoder else out[len(ids) :]
        texts.append(model.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], LoadedModel]:
    """Loads a family's tiny model with a variant of the tokenizer."""

    def load(family: str, variant: str = "all, bos prepended") -> LoadedModel:
        chosen = VARIANTS[variant]
        folder: Path = save_odd(family, tmp_path_factory.mktemp(family) / "model", initializer_range=0.2)
        with_tokenizer(folder, chosen.names, chosen.around, chosen.side)
        return load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu")

    return load


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_a_batch_is_answered_as_each_prompt_alone(
    family: str, variant: str, loaded: Callable[[str, str], LoadedModel]
) -> None:
    """Whatever the tokenizer lacks or adds; and as transformers answers without raycl."""
    model = loaded(family, variant)
    assert not model.faults
    assert model.tokenizer.eos_token_id == 2 and model.tokenizer.pad_token_id is not None
    together = answers(model, len(PROMPTS))
    assert len(set(together)) > 1
    assert together == answers(model, 1) == by_transformers(model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_every_family_answers_a_batch_as_each_prompt_alone(family: str, loaded: Callable[[str], LoadedModel]) -> None:
    """Padding reaches no position, state or window of any of them."""
    model = loaded(family)
    assert answers(model, len(PROMPTS)) == answers(model, 1) == by_transformers(model)
