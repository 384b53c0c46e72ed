"""Load a base model by name: the backbone on its device, its tokenizer, and the fingerprint of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycl.errors import SpecError, first_line
from raycl.models.families import DROPOUTS, TARGETS
from raycl.models.fingerprint import fingerprint
from raycl.models.packaged import converted
from raycl.models.places import place
from raycl.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raycl.adapters.backbone import Backbone


@dataclass(frozen=True)
class LoadedModel:
    """A backbone on its device, its tokenizer, and the SHA-256 that stands for both in stage keys."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    name: str


def load_model(spec: ModelSpec, device: str) -> LoadedModel:
    """Load a base model, frozen and in eval mode, on `device`. Code inside the model's folder is never run.

    Raises SpecError if the folder cannot be loaded.
    """
    from raycl.adapters.backbone import Backbone

    if spec.precision == "auto":
        raise ValueError("model.precision is still 'auto': resolve the run spec before its model is loaded")
    path = place(spec)
    folder = converted(path) if path.is_file() else path
    try:
        config, model, tokenizer = _read(folder, spec)
    except Exception as error:  # the loaders raise types of several libraries
        raise SpecError(
            f"model.name: {folder} cannot be loaded ({type(error).__name__}: {first_line(error)[:300]}). "
            "Give a folder as save_pretrained writes it, of a model type that transformers knows without further code."
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    backbone = Backbone(
        model=model,
        targets=TARGETS.get(config.model_type, ()),
        encoder_decoder=bool(config.is_encoder_decoder),
        width=model.get_input_embeddings().embedding_dim,
        dtype=model.dtype,
    )
    return LoadedModel(backbone, tokenizer, fingerprint(spec), spec.name)


def _read(folder: Path, spec: ModelSpec) -> tuple[Any, Any, Any]:
    """Configuration, model and tokenizer of a folder. Without the explicit no, transformers asks whether to run code."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, spec.dropout)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    model = auto.from_pretrained(folder, config=config, dtype=dtype, trust_remote_code=False)
    return config, model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _contiguous(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the few positions that reach the output layer: on a strided slice, torch would copy the vocabulary matrix once
    per example instead (measured on CPU: more than half of a forward pass of 50 prompts)."""
    return (inputs[0].contiguous(), *inputs[1:])
