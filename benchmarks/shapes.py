"""Base models to measure steps on: the packaged one, few layers of T5-Large's and Llama-7B's shapes in random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raycl.adapters.backbone import Backbone
from raycl.models.load import as_backbone, load_model
from raycl.models.probe import regions
from raycl.models.shapes import KNOWN
from raycl.sections import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def t5_large(layers: int) -> PretrainedConfig:
    """T5-Large, so many layers in the encoder and in the decoder (of 24)."""
    return known("google-t5/t5-large", num_layers=layers, dropout_rate=0.0)


def llama_7b(layers: int) -> PretrainedConfig:
    """Llama-7B, so many layers (of 32)."""
    return known("meta-llama/Llama-2-7b-hf", num_hidden_layers=layers)


def known(name: str, **changes: Any) -> PretrainedConfig:
    """A published model's configuration with some values changed."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**(KNOWN[name] | changes))


def tiny(layers: int) -> PretrainedConfig:
    """Nothing worth a measurement: to try the benchmark itself out."""
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return LlamaConfig(**sizes, num_key_value_heads=2, num_hidden_layers=layers)


SHAPES: dict[str, Callable[[int], PretrainedConfig]] = {"t5-large": t5_large, "llama-7b": llama_7b, "tiny": tiny}
"""Configurations by name, of so many layers."""
PACKAGED = "packaged"
NAMES = (PACKAGED, *SHAPES)


def backbone_of(name: str, layers: int, precision: str, device: str) -> Backbone:
    """A base model by the name of its shape, frozen, on `device`; the packaged one has all its layers."""
    if name == PACKAGED:
        return load_model(ModelSpec.model_validate({"precision": precision}), device).backbone
    return random_backbone(SHAPES[name](layers), precision, device)


def random_backbone(config: PretrainedConfig, precision: str, device: str) -> Backbone:
    """A base model of a configuration in random weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=dtype).to(device).eval().requires_grad_(False)
    return as_backbone(model, regions(model))
