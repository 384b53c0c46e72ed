"""What is known of a base model before its weights are here: its configuration, and its tokenizer where it can be had."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from raycl.errors import SetupError, SpecError, first_line
from raycl.models.packaged import converted
from raycl.models.places import locate, snapshot
from raycl.sections import ModelSpec

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
}
KNOWN: dict[str, dict[str, Any]] = {
    "google-t5/t5-large": {
        "model_type": "t5",
        "d_model": 1024,
        "d_ff": 4096,
        "d_kv": 64,
        "num_heads": 16,
        "num_layers": 24,
        "vocab_size": 32128,
        "decoder_start_token_id": 0,
    },
    "meta-llama/Llama-2-7b-hf": LLAMA,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA,
    "meta-llama/Llama-2-13b-hf": LLAMA
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "meta-llama/Meta-Llama-3-8B": LLAMA
    | {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192},
}
"""Configurations of the models of the published tables, as far as shapes and lengths depend on them; the rest is the
library's default. These can be counted without the hub."""


def folder_of(place: Path) -> Path:
    """What transformers loads: the folder of a model, or the packaged file's copy as one."""
    return converted(place) if place.is_file() else place


def light_folder(spec: ModelSpec) -> Path | None:
    """A folder with the model's configuration and tokenizer; a hub model's weights are not fetched. None where the hub does
    not answer and only the shapes of the model are known.

    Raises SpecError for a path that holds no model, SetupError for a hub model that is neither to be had nor known.
    """
    place = locate(spec)
    if place is not None:
        return folder_of(place)
    try:
        return snapshot(spec, weights=False)
    except SetupError as error:
        if spec.name in KNOWN:
            return None
        raise SetupError(f"{error} Shapes that are known without the hub: {', '.join(KNOWN)}.") from error


def configuration(spec: ModelSpec) -> Any:
    """The model's configuration. Raises SpecError for a folder that cannot be read, and as `light_folder`."""
    from transformers import AutoConfig

    folder = light_folder(spec)
    try:
        if folder is None:
            values = dict(KNOWN[spec.name])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the loaders raise types of several libraries
        raise unreadable(folder, error) from error


@lru_cache(maxsize=1)
def empty(spec: ModelSpec) -> tuple[Any, Any]:
    """The model on torch's meta device, where tensors have shapes and no content, and its configuration.

    Raises as `configuration`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = configuration(spec)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            # Other attention asks for the content of masks, which nothing on the meta device has.
            return auto.from_config(config, trust_remote_code=False, attn_implementation="eager"), config
    except Exception as error:
        raise unreadable(light_folder(spec), error) from error


def unreadable(folder: Path | None, error: Exception) -> SpecError:
    """Why a folder is no model, in words."""
    return SpecError(
        f"model.name: {folder} cannot be read ({type(error).__name__}: {first_line(error)[:300]}). "
        "Give a folder as save_pretrained writes it, of a model type that transformers knows without further code."
    )
