"""Model families: what raycl knows of a model by its `model_type`."""

from __future__ import annotations

import json

from raycl.errors import SpecError
from raycl.models.places import locate
from raycl.models.shapes import KNOWN, light_folder
from raycl.sections import ModelSpec

KEPT = {
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""Where default targets have been others than query and value, by `model_type`: keys of stages do not hold default targets,
so these stay what the stored stages of such models were trained with."""


def family(spec: ModelSpec) -> str:
    """The `model_type` of a model (t5, llama, qwen2, ...), read from its configuration only."""
    path = locate(spec)
    if path is not None and path.is_file():  # the packaged model
        return "llama"
    path = light_folder(spec)
    if path is None:
        return str(KNOWN[spec.name]["model_type"])
    config = path / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise SpecError(f"model.name: {config} is missing or no JSON object; give a folder written by save_pretrained.")
    return str(values.get("model_type", "unknown"))
