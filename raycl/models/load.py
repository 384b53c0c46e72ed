"""Load a base model by name: the backbone on its device, its tokenizer, and the fingerprint of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycl.errors import SetupError, SpecError, first_line
from raycl.files import Json
from raycl.models.families import KEPT
from raycl.models.faults import find_faults, heal_end_token
from raycl.models.fingerprint import fingerprint
from raycl.models.options import leave_out_unsound_kernels, loading_options, require_options, take_faster_kernels
from raycl.models.places import locate, place
from raycl.models.probe import regions, set_dropout
from raycl.models.reading import longest_reading
from raycl.models.shapes import folder_of, light_folder
from raycl.models.targets import query_and_value
from raycl.sections import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raycl.adapters.backbone import Backbone, Region


@dataclass(frozen=True)
class LoadedModel:
    """A backbone on its device, its tokenizer, and the SHA-256 that stands for both in stage keys."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    name: str
    positions: int | None = None
    """Tokens that the model has positions for; none where it knows no limit."""
    faults: tuple[str, ...] = ()
    """Why it cannot be trained or scored; a run that asks for it is refused with all of them."""
    record: Json = field(default_factory=dict)
    """What was set on the model, for the manifests of its stages."""


@dataclass(frozen=True)
class _Files:
    """What a model's folder holds."""

    config: Any
    model: Any
    tokenizer: Any
    report: Json
    """transformers' account of weights that were missing, unexpected or of another shape."""
    dropout: dict[str, float]


def load_model(spec: ModelSpec, device: str) -> LoadedModel:
    """Load a base model, frozen and in eval mode, on `device`. Code inside the model's folder is never run.

    What is wrong with it is in its `faults`. Raises SpecError if the folder cannot be loaded at all.
    """
    if spec.precision == "auto":
        raise ValueError("model.precision is still 'auto': resolve the run spec before its model is loaded")
    require_options(spec, device)
    leave_out_unsound_kernels()
    take_faster_kernels()
    mark = fingerprint(spec)
    folder = model_folder(spec)
    try:
        files = _read(folder, spec, device)
    except Exception as error:  # the loaders raise types of several libraries
        raise SpecError(
            f"model.name: {folder} cannot be loaded ({type(error).__name__}: {first_line(error)[:300]}). "
            "Give a folder as save_pretrained writes it, of a model type that transformers knows without further code."
            + ("" if spec.attention == "auto" else f" Or leave model.attention ({spec.attention}) at auto.")
        ) from error
    config, model, tokenizer = files.config, files.model, files.tokenizer
    if spec.quantization == "none":
        model = model.to(device)
    model = model.eval().requires_grad_(False)
    model.generation_config = _plain_generation(model)
    heal_end_token(config, tokenizer)
    faults = find_faults(spec, model, tokenizer, files.report)
    if spec.gradient_checkpointing and not faults:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    exact = spec.precision == "fp32" and spec.quantization == "none"
    called, readable = ({}, 0) if faults else (regions(model), longest_reading(model, exact))
    backbone = as_backbone(model, called, readable)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # transformers tells which attention it chose under a private name only; the record does without where it moves.
    attention = getattr(model.config, "_attn_implementation", None)
    record: Json = {"dropout": dict(files.dropout), "attention": attention}
    return LoadedModel(backbone, tokenizer, mark, spec.name, positions, tuple(faults), record)


def as_backbone(model: Any, called: Mapping[str, Region | None], readable: int = 0) -> Backbone:
    """A frozen model as methods see it; `called` are the linear modules that a pass calls (`probe.regions`), `readable` the
    tokens that can be read once (`reading.longest_reading`)."""
    from raycl.adapters.backbone import Backbone

    if model.get_output_embeddings() is not None:
        model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return Backbone(
        model=model,
        targets=KEPT.get(model.config.model_type) or query_and_value(model, called),
        encoder_decoder=bool(model.config.is_encoder_decoder),
        width=model.get_input_embeddings().weight.shape[1],
        regions=called,
        readable=readable,
        dtype=model.dtype,
    )


def _read(folder: Path, spec: ModelSpec, device: str) -> _Files:
    """Everything in a folder. Without the explicit no, transformers asks whether to run code, and reads pickles."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    dropout = set_dropout(config, spec.dropout)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    how: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    how |= loading_options(spec, device, dtype)
    loaded: Any = auto.from_pretrained(folder, config=config, dtype=dtype, trust_remote_code=False, **how)
    model, report = loaded
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return _Files(config, model, tokenizer, report, dropout)


def _plain_generation(model: Any) -> Any:
    """Generation settings that say nothing but how a decoder starts: all else is given with each call, and is in the key.

    A checkpoint may bring others (a repetition penalty, a least length), which would change its scores without a trace.
    """
    from transformers import GenerationConfig

    start = model.generation_config.decoder_start_token_id
    return GenerationConfig(
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None) if start is None else start
    )


def _contiguous(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the few positions that reach the output layer: on a strided slice, torch would copy the vocabulary matrix once
    per example instead (measured on CPU: more than half of a forward pass of 50 prompts)."""
    return (inputs[0].contiguous(), *inputs[1:])


def model_folder(spec: ModelSpec) -> Path:
    """What transformers loads of a model; a hub model is downloaded if needed. Raises as `place`."""
    return folder_of(place(spec))


def base_place(spec: ModelSpec) -> str:
    """What other programs load a base model by: its folder, the packaged one's copy in raycl's home, or its hub id."""
    path = locate(spec)
    return spec.name if path is None else str(folder_of(path))


@dataclass(frozen=True)
class TextSide:
    """What is known of a model without its weights: enough to see what it reads."""

    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    positions: int | None
    """Tokens that the model has positions for; none where it knows no limit."""


def load_tokenizer(spec: ModelSpec) -> TextSide:
    """A model's tokenizer and what its configuration says of lengths; a hub model's weights are not fetched.

    Raises SpecError as `load_model`, SetupError for a hub model whose tokenizer cannot be had.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = light_folder(spec)
    if folder is None:
        raise SetupError(
            f"model.name: the tokenizer of {spec.name} could not be fetched from the hub. Check the connection, or give "
            "--model FOLDER, or --model packaged, which needs no network."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the loaders raise types of several libraries
        raise SpecError(
            f"model.name: the tokenizer of {folder} cannot be loaded ({type(error).__name__}: {first_line(error)[:300]})"
        ) from error
    heal_end_token(config, tokenizer)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return TextSide(tokenizer, bool(config.is_encoder_decoder), positions)
