"""Presets and the layers a run spec is put together from, weakest first: preset, the method's published settings, a YAML
file, the command line's flags, `--set` overrides. Every layer is a nested mapping of run-spec fields."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from raycl.errors import SpecError, shown
from raycl.files import Json
from raycl.reading import YAML, parse_yaml, read_text

LAPTOP: Json = {
    "model": {"name": "packaged", "precision": "auto"},
    "data": {"train_examples": 256, "test_examples": 100, "max_source_tokens": 96, "max_target_tokens": 16},
    "train": {"lr": 5e-4, "epochs": 1, "batch_size": 8, "log_every": 4},
    "eval": {"batch_size": 50},
}
"""A sequence of four tasks in about five minutes on two CPU cores."""

PAPER: Json = {
    "model": {"name": "google-t5/t5-large", "precision": "bf16"},
    "data": {"max_source_tokens": 512, "max_target_tokens": 50},
    "train": {"micro_batch_size": 8, "zero_stage": 2, "log_every": 20},
    "eval": {"batch_size": 64},
}
"""The papers' scale; the method adds its own settings for the model family and the order."""

DEMO: Json = {
    "model": {"name": "packaged", "precision": "auto"},
    "data": {"train_examples": 128, "test_examples": 24, "max_source_tokens": 64, "max_target_tokens": 8},
    "train": {"lr": 1e-3, "epochs": 1, "batch_size": 8, "log_every": 4},
    "eval": {"batch_size": 24},
    "workers": 0,
}
"""The first look: four short stages in one process, each in about a minute on two old CPU cores."""

PRESETS: dict[str, Json] = {"laptop": LAPTOP, "paper": PAPER, "demo": DEMO}


def merge(*layers: Json) -> Json:
    """Deep-merge nested mappings; later layers win. A `method` layer that names another method replaces it whole."""
    merged: Json = {}
    for layer in layers:
        for key, value in layer.items():
            known = merged.get(key)
            if isinstance(value, dict) and isinstance(known, dict) and not (key == "method" and _other(known, value)):
                merged[key] = merge(known, value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


def _other(known: Json, method: Json) -> bool:
    """Whether a `method` layer names another method than the layers below it."""
    return "name" in method and known.get("name", method["name"]) != method["name"]


def parse_override(text: str) -> Json:
    """`method.rank=8` as {"method": {"rank": 8}}; the value is YAML, so lists are written [1, 2].
    YAML reads 1e-4 as text; validation makes it a number where the field is one.

    Raises SpecError where there is no `=` or the value is not YAML.
    """
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise SpecError(f"--set {shown(text)}: expected field=value, for example --set method.rank=8")
    try:
        nested: Any = parse_yaml(value)
    except ValueError as error:
        raise SpecError(f"--set {shown(text)}: the value is {error}; quote it for the shell, or correct it") from None
    for name in reversed(names):
        nested = {name: nested}
    return nested


def read_config(path: str) -> Json:
    """A YAML file with run-spec fields. Raises SpecError where it is missing, not YAML, or not a mapping."""
    try:
        values = parse_yaml(read_text(Path(path), YAML))
    except OSError as error:
        raise SpecError(f"--config {path}: cannot be read ({error.strerror}); give an existing YAML file") from None
    except ValueError as error:
        raise SpecError(f"--config {path}: {error}; see docs/configuration.md") from None
    if not isinstance(values, dict):
        raise SpecError(f"--config {path}: expected a mapping of fields, found {type(values).__name__}")
    return values
