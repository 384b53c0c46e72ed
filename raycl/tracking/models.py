"""A finished sequence as an MLflow model: a note of its stages, which raycl loads from the store that holds them."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raycl import __version__
from raycl.files import Json, write_json

LOADER = "raycl.use.pyfunc"
"""The module by which MLflow loads such a model."""
FOLDER = "model"
"""Where it lies among a run's artifacts."""
NOTE = "head.json"
CONFIG = {"store": "", "model": "", "device": ""}
"""What `mlflow.pyfunc.load_model(..., model_config={...})` may say: where stages and base model lie now, and the device."""


def log_model(client: Any, run_id: str, spec: Json, facts: Json) -> None:
    """Put the model into a run's artifacts; `facts` are those of a sequence's end: its stages' keys, store and data.

    No weight is copied: the stages lie in the store under their keys, and `mlflow.pyfunc.load_model` must reach it.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    with warnings.catch_warnings(), TemporaryDirectory(prefix="raycl-model-") as name:
        data, model = Path(name, "data"), Path(name, FOLDER)
        data.mkdir()
        note = {name: facts[name] for name in ("stage_keys", "store", "data")}
        write_json(data / NOTE, {"spec": spec, **note})
        requirements = [f"raycl=={__version__}"]
        params = [ParamSpec("task", DataType.string, ""), ParamSpec("max_tokens", DataType.long, 0)]
        warnings.simplefilter("ignore", UserWarning)  # an example of the input is not needed
        mlflow.pyfunc.save_model(
            model,
            loader_module=LOADER,
            data_path=str(data),
            pip_requirements=requirements,
            signature=ModelSignature(params=ParamSchema(params)),
            model_config=CONFIG,
        )
        client.log_artifacts(run_id, str(model), FOLDER)
