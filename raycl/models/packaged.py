"""The packaged model, a GGUF file, as a folder that transformers loads at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from raycl.files import home
from raycl.models.fingerprint import file_hash


def converted(gguf: Path) -> Path:
    """The packaged model as a safetensors folder, converted once and cached under the home folder."""
    target = home() / "models" / f"{gguf.stem}-{file_hash(gguf)[:12]}"
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
