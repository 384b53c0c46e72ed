"""A soft prompt in front of every input as a PEFT prompt: of the methods that have one for each task."""

from __future__ import annotations

from pathlib import Path

from raycl.adapters.branches import prompt_config
from raycl.files import write_json, write_whole
from raycl.models.load import LoadedModel, base_place
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL
from raycl.state.tensor_files import encode_tensors
from raycl.use.heads import Head
from raycl.use.served import Served


def write_prompt(head: Head, loaded: LoadedModel, folder: Path, task: str | None) -> None:
    """Write what is served for a task, (P, d), into `folder`. Raises ValueError for a method without a prompt in front."""
    with Served(head, loaded, task) as served:
        prompt = served.soft_prompt
    if prompt is None or prompt.place != "front" or len(prompt.vectors) != 1:
        raise ValueError(f"{head.spec.method.name}: has no prompt that stands in front of every input")
    vectors = prompt.vectors[0].detach().float().cpu()
    config = prompt_config(loaded.backbone, len(vectors), base_place(head.spec.model))
    content = encode_tensors({"prompt_embeddings": vectors})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / Path(ADAPTER_CONFIG).name, config)
    write_whole(folder / Path(ADAPTER_MODEL).name, lambda path: path.write_bytes(content))
