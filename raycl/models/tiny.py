"""Tiny random models made on the spot: what a run checks its wiring with. They answer nothing sensible."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FAMILIES = ("llama", "t5")
VOCABULARY = 600
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WIDTH = 64


def save_tiny_model(family: str, folder: Path, texts: Iterable[str]) -> Path:
    """Write a random model of a family and a tokenizer learned from `texts`, as save_pretrained writes them.

    Two layers (T5: two and two), 64 wide; q and v are not square. Always the same weights for the same texts.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    if family not in FAMILIES:
        raise ValueError(f"no tiny model of the family {family!r}; there are {', '.join(FAMILIES)}")
    tokenizer = _tokenizer(family, texts)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if family == "llama":
            sizes |= {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.2}
            sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1}
            model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
        else:
            sizes |= {"d_model": WIDTH, "d_kv": 12, "num_heads": 4, "d_ff": 96, "decoder_start_token_id": 0}
            model = T5ForConditionalGeneration(T5Config(**sizes, num_layers=2, num_decoder_layers=2))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(family: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text can be written with it. Llama's starts with <s>, T5's ends with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    template, mark = ("<s> $A", ("<s>", 1)) if family == "llama" else ("$A </s>", ("</s>", 2))
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[mark])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)
