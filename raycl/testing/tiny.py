"""Two tiny random models in folders, a decoder and an encoder-decoder, whose tokenizer knows the toy tasks' words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raycl.models.load import LoadedModel

FAMILIES = ("llama", "t5")
TASKS, WORDS = 5, 12
LABELS = ("good", "very bad")
WIDTH = 48
"""Width d of the tiny models; their q and v are not square."""


def load_tiny(folder: Path, precision: Literal["fp32", "bf16"]) -> LoadedModel:
    """A model folder through raycl's own loader."""
    from raycl.models.load import load_model
    from raycl.sections import ModelSpec

    return load_model(ModelSpec(name=str(folder), precision=precision), "cpu")


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the toy tasks' words; Llama's starts with <s>, T5's ends with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(" ".join(LABELS).split())]
    for task in range(1, TASKS + 1):
        words += [f"t{task}{kind}" for kind in ("head", "tail", *(f"w{i}" for i in range(WORDS)))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, special = ("<s> $A", ("<s>", 1)) if family == "llama" else ("$A </s>", ("</s>", 2))
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[special])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def save_tiny(family: str, folder: Path) -> None:
    """Write a random tiny model and its tokenizer: two layers (T5: two and two), no dropout, fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer(family)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(7)
    if family == "llama":
        attention: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
        shape: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
        shape["initializer_range"] = 0.3
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **shape, **attention, bos_token_id=1))
    else:
        shape = {"d_model": WIDTH, "d_kv": 6, "num_heads": 4, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2}
        shape["decoder_start_token_id"] = 0
        model = T5ForConditionalGeneration(T5Config(**sizes, **shape, dropout_rate=0.0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
