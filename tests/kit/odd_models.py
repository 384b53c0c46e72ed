"""Tiny random models of many families, and the faults that checkpoints have, as folders."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.kit.tiny_texts import text_tokenizer

PLAIN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED: dict[str, Any] = PLAIN | {"intermediate_size": 48, "num_key_value_heads": 2}
BART: dict[str, Any] = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128, "dropout": 0.1},
}
LATENT: dict[str, Any] = {
    **{"intermediate_size": 48, "moe_intermediate_size": 16, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
}
"""Attention over compressed keys and values, and experts."""
T5: dict[str, Any] = {"d_model": 32, "d_kv": 6, "num_heads": 4, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2}
GATED_T5: dict[str, Any] = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": (
        *("GPTNeoXConfig", "GPTNeoXForCausalLM"),
        PLAIN | {"intermediate_size": 48, "max_position_embeddings": 128},
    ),
    "opt": (
        *("OPTConfig", "OPTForCausalLM"),
        PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128, "dropout": 0.5},
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", "FalconForCausalLM", PLAIN),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", GATED),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "gemma3_text": (
        *("Gemma3TextConfig", "Gemma3ForCausalLM"),
        GATED | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GATED | {"head_dim": 8}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", GATED | {"initializer_range": 0.2}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", BART),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", PLAIN | LATENT),
    "mistral": ("MistralConfig", "MistralForCausalLM", GATED | {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GATED),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", GATED | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GATED | {"head_dim": 8, "sliding_window": 16}),
    "phi": ("PhiConfig", "PhiForCausalLM", PLAIN | {"intermediate_size": 48}),
    "mpt": ("MptConfig", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "falcon_grouped": (
        *("FalconConfig", "FalconForCausalLM"),
        PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False},
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "flan_t5": ("T5Config", "T5ForConditionalGeneration", GATED_T5),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", GATED_T5),
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}),
    "trocr": (
        *("TrOCRConfig", "TrOCRForCausalLM"),
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.3},
    ),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
"""Family -> class of its configuration, class of its model, sizes."""

REFUSED = ("rwkv", "trocr")
"""Families in which padding reaches the tokens beside it: through a state, and by the positions that it takes."""
NO_DEFAULT = ("mamba",)
"""Families without attention, in which nothing is adapted unless it is named."""


def save_odd(family: str, folder: Path, seed: int = 11, **fields: Any) -> Path:
    """Write a random model of a family, `fields` on top of its sizes, and a byte-level tokenizer."""
    import torch
    import transformers

    config, model, sizes = FAMILIES[family]
    seq2seq = "ConditionalGeneration" in model
    tokenizer = text_tokenizer("t5" if seq2seq else "llama")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if seq2seq:
        ids["decoder_start_token_id"] = 0 if "T5" in model else 2
    values = {"vocab_size": len(tokenizer)} | ids | sizes | fields
    torch.manual_seed(seed)
    getattr(transformers, model)(getattr(transformers, config)(**values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path, names: Collection[str], around: str, side: str) -> None:
    """Replace the tokenizer by one that names only some of its tokens (pad, bos, eos), puts others `around` a text and pads
    on a `side`."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core = text_tokenizer("llama").backend_tokenizer
    special = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    marks = [(token, place) for place, token in enumerate(special.values()) if token in around]
    core.post_processor = processors.TemplateProcessing(single=around, special_tokens=marks)
    known = {f"{name}_token": special[name] for name in names}
    for file in folder.glob("*token*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, **known).save_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; none becomes null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_pickle(folder: Path) -> None:
    """Leave the weights as pytorch_model.bin only. The file's content is never read, so any will do."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(folder: Path, *names: str) -> None:
    """Take tensors out of the weights."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in names:
        weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def ends_at_once(folder: Path, likeliest: int) -> None:
    """Make the end token likelier than the token that is likeliest now (with logits above 0)."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][2] = 2 * weights["lm_head.weight"][likeliest]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_extra(folder: Path, name: str) -> None:
    """Add a tensor that the configuration has no place for."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors") | {name: torch.zeros(2, 2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
