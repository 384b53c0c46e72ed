"""What a model has read of a prompt is kept where that changes nothing, which a short pass finds out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raycl.models.load import load_model
from raycl.models.reading import longest_reading, read
from raycl.sections import ModelSpec
from tests.kit.odd_models import FAMILIES, save_odd

NOT_READABLE = ("gemma3_text", "mistral", "gemma2", "mpt", "rwkv", "trocr", "mamba")
"""Windows of 16 tokens; positions counted from the padding; a state in the place of keys and values."""


@pytest.mark.parametrize("family", FAMILIES)
def test_models_whose_prompts_cannot_be_kept_are_found(family: str, tmp_path: Path) -> None:
    """By what they do."""
    found = load_model(ModelSpec(name=str(save_odd(family, tmp_path / family)), precision="fp32"), "cpu")
    assert (found.backbone.readable == 0) == (family in NOT_READABLE)


def test_a_window_is_a_limit(tmp_path: Path) -> None:
    """Of a model that sees 64 tokens 63 can be kept: of more the first ones would be gone."""
    folder = save_odd("mistral", tmp_path / "mistral", sliding_window=64)
    assert load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu").backbone.readable == 63


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_tokens_behind_a_prompt_are_forgotten_again(family: str, tmp_path: Path) -> None:
    """The same question twice, with another one between: the same logits, and those of one pass over everything."""
    model = load_model(ModelSpec(name=str(save_odd(family, tmp_path / family)), precision="fp32"), "cpu").backbone.model
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        reading, first = read(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        one = reading.follow([[11, 12, 13]])
        other = reading.follow([[14]])
        assert torch.equal(one, reading.follow([[11, 12, 13]])) and not torch.allclose(one[:, :1], other)
        if family == "llama":
            whole = model(input_ids=torch.tensor([[*range(5, 14)]]), use_cache=False).logits
        else:
            whole = model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 11, 12, 13]]), use_cache=False).logits
    assert torch.allclose(torch.cat([first[:, None], one], 1), whole[:, -4:], atol=1e-5)


def test_a_model_without_caches_is_not_readable() -> None:
    """Whatever it raises."""
    assert longest_reading(torch.nn.Linear(2, 2), exact=True) == 0
