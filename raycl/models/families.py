"""Model families: what raycl knows of a model by its `model_type`."""

from __future__ import annotations

import json

from raycl.errors import SpecError
from raycl.models.places import place
from raycl.spec import ModelSpec

TARGETS = {
    "t5": ("q", "v"),
    "mt5": ("q", "v"),
    "phi3": ("qkv_proj",),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), ("q_proj", "v_proj")),
}
"""Linear modules that get adapters, by the model's `model_type`, where raycl need not ask PEFT."""


def default_targets(kind: str) -> tuple[str, ...]:
    """The linear modules that get adapters in models of the `model_type` `kind`; none where neither raycl nor PEFT knows."""
    if kind in TARGETS:
        return TARGETS[kind]
    from raycl.adapters.branches import known_targets

    return known_targets(kind)


def family(spec: ModelSpec) -> str:
    """The `model_type` of a model (t5, llama, qwen2, ...), read from its configuration only."""
    path = place(spec)
    if path.is_file():  # the packaged model
        return "llama"
    config = path / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise SpecError(f"model.name: {config} is missing or no JSON object; give a folder written by save_pretrained.")
    return str(values.get("model_type", "unknown"))
