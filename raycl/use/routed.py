"""The router of a state that sends each input to one adapter, as numbers and a page of Python that needs no raycl."""

from __future__ import annotations

from pathlib import Path

from raycl.files import write_json, write_text, write_whole
from raycl.models.load import LoadedModel, base_place
from raycl.state.tensor_files import encode_tensors
from raycl.use.heads import Head
from raycl.use.served import Served

PAGE = Path(__file__).parent / "files" / "route.py.txt"


def write_router(head: Head, loaded: LoadedModel, folder: Path) -> None:
    """Write router.json, router.safetensors and route.py. Raises ValueError for a method that routes nothing."""
    with Served(head, loaded) as served:
        rule = served.rule
    if rule is None:
        raise ValueError(f"{head.spec.method.name} routes nothing")
    settings = {
        "base_model": base_place(head.spec.model),
        "tasks": list(rule.tasks),
        "adapter_of": {task: rule.tasks[answer] for task, answer in zip(rule.tasks, rule.answers, strict=True)},
        "features": "hidden" if rule.layer else "embeddings",
        "layer": rule.layer,
        "pooled": "prompt" if rule.whole_prompt else "text",
        "unknown": "base" if "limits" in rule.tensors else "nearest",
        "temperature": rule.temperature,
        "max_tokens": head.spec.data.max_source_tokens,
        "drop_end": not loaded.backbone.encoder_decoder,
        "end_token": loaded.tokenizer.eos_token_id,
    }
    content = encode_tensors(dict(rule.tensors))
    write_json(folder / "router.json", settings, indent=2)
    write_whole(folder / "router.safetensors", lambda path: path.write_bytes(content))
    write_text(folder / "route.py", PAGE.read_text(encoding="utf-8"))
