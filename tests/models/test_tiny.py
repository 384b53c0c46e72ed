"""The tiny random models that runs check their wiring with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycl.models.tiny import save_tiny_model

TEXTS = ["the story of a film", "a film of the story"] * 3
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "bos_token_id": 1,
    },
    "t5": {
        "d_model": 64,
        "d_kv": 12,
        "d_ff": 96,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "decoder_start_token_id": 0,
    },
}


@pytest.mark.parametrize("family", SHAPES)
def test_shape_tokens_and_weights(tmp_path: Path, family: str) -> None:
    """The stated shape; special tokens in their places; the same bytes for the same texts, whatever was drawn before."""
    import torch
    from transformers import AutoTokenizer

    first = save_tiny_model(family, tmp_path / "a" / "first", TEXTS)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    second = save_tiny_model(family, tmp_path / "second", TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    config = json.loads((first / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(first)
    special = {"pad_token_id": 0, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    assert {name: config[name] for name in SHAPES[family] | special} == SHAPES[family] | special
    names = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert names == ("<pad>", "<s>", "</s>", "<unk>") == tuple(tokenizer.convert_ids_to_tokens([0, 1, 2, 3]))
    ids = tokenizer("the film: naïve 電影").input_ids
    assert (ids[0] == 1) == (family == "llama") and (ids[-1] == 2) == (family == "t5") and 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "the film: naïve 電影"
    assert len(tokenizer("the story of a film", add_special_tokens=False).input_ids) < 10


def test_there_are_two_families(tmp_path: Path) -> None:
    """Another name is refused with both."""
    with pytest.raises(ValueError, match="'gpt2'; there are llama, t5"):
        save_tiny_model("gpt2", tmp_path, TEXTS)
