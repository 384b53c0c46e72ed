"""A machine that only trains: no Ray, DeepSpeed or MLflow, and nothing else that torch and transformers do without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.bare import bare
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags


@pytest.mark.slow
def test_a_sequence_runs_where_only_torch_and_transformers_are_installed(flags: MakeFlags, tmp_path: Path) -> None:
    """Trained, scored and found in the store; what it leaves is what the same command leaves elsewhere but for pictures."""
    given = [*flags(tmp_path / "store", order="roget,snippets"), "--workers", "0", "--tracking", "off"]
    done = bare("raycl", ["run", *given, "--output", tmp_path / "out"], RAYCL_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "2 to run" in done.stdout and "mlflow" not in done.stdout.lower()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"matrix.csv", "matrix.json", "matrix.md", "spec.json"} <= left and not any(
        name.endswith("png") for name in left
    )
    here = invoke("run", [*given, "--output", tmp_path / "here"])
    assert here.code == 0 and "2 in the store" in here.stdout
    again = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert again["stage_keys"] == summary["stage_keys"] and again["AP"] == summary["AP"]
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "train.engine=deepspeed", "--tracking", "off"], "train.engine: DeepSpeed is not installed here"),
        ([], "MLflow is not installed here"),
    ],
)
@pytest.mark.slow
def test_what_is_wanted_and_absent_is_named_with_the_way_out(
    given: list[str], message: str, flags: MakeFlags, tmp_path: Path
) -> None:
    """Exit code 2 and one line; no traceback, nothing half done."""
    words = ["run", *flags(tmp_path / "store", order="roget"), "--workers", "0", *given]
    done = bare("raycl", words, RAYCL_HOME=str(tmp_path / "home"))
    assert done.returncode == 2 and message in done.stderr and "next step" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "store" / "stages").glob("*")) if (tmp_path / "store").exists() else True
