"""The packaged model, a GGUF file, as a folder that transformers loads at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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
            with read_once():
                _convert(gguf, scratch)
            os.replace(scratch, target)
    return target


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once for configuration, tokenizer and weights, and name its tensors once.

    It reads the file for each, asks for the names once per module, and the reader takes its half a million numbers one by
    one from an array that is slow to take from: a minute on a slow core, and some seconds in here.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """With the file's bytes as a plain array."""

        @property
        def data(self) -> np.ndarray:
            """The bytes of the file, mapped into memory."""
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._data = np.asarray(mapped)

    once = {"GGUFReader": cache(Reader), "get_tensor_name_map": cache(gguf.get_tensor_name_map)}
    before = {name: getattr(gguf, name) for name in once}
    for name, cached in once.items():
        setattr(gguf, name, cached)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(gguf, name, own)


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
