"""Training on CPU needs no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.commands import Commands
from tests.kit.runs import MakeFlags


@pytest.mark.slow
def test_a_stage_on_cpu_compiles_nothing(commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """A new interpreter that finds neither a compiler nor ninja trains a stage and leaves no compiled op behind; nor does
    DeepSpeed's autotuner bring MLflow along where nothing is recorded."""
    programs, extensions = tmp_path / "bin", tmp_path / "extensions"
    programs.mkdir()
    extensions.mkdir()
    done = commands.cold(
        flags(tmp_path / "store", order="roget", train__engine="deepspeed"),
        PATH=str(programs),
        CXX="",
        TORCH_EXTENSIONS_DIR=str(extensions),
        GIT_PYTHON_REFRESH="quiet",
        MLFLOW_TRACKING_URI="off",
    )
    assert done.code == 0, done.err
    assert "Plan: 1 stages, 0 in the store, 1 to run" in done.out
    assert "deepspeed" in done.modules and "mlflow" not in done.modules
    assert not list(extensions.iterdir())
