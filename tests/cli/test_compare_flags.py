"""The command line of a comparison: quick help, one message for what cannot be used, and a run with all its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.kit.cli import invoke

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "transformers", "deepspeed", "mlflow", "peft", "pandas", "matplotlib", "scipy")


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Quiet mode would silence the other tests' loggers as well."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))


def test_help_imports_nothing_heavy() -> None:
    """Every verb answers before any library is loaded."""
    code = f"""
import sys
from tests.kit.cli import invoke
for verb in ("run", "sweep", "compare", "reproduce", "methods", "fields", "store", "version"):
    assert invoke(verb, ["--help"]).code == 0
assert not [name for name in {HEAVY!r} if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one method"),
        (["--method", "o_lora:rank"], "is not FIELD=VALUE"),
        (["--method", "o_lora", "--method", "o_lora"], "o_lora stands twice"),
        (["--method", "o_lora", "--seed", "1", "--seed", "1"], "--seed: 1 stands twice"),
        (["--method", "o_lora", "--order", "no-such"], "no-such"),
        (["--method", "o_lora", "--workers", "4"], "`raycl run` on the same store"),
        (["--method", "o_loar"], "did you mean 'o_lora'"),
        (["--method", "o_lora", "--set", "method.rang=2"], "method.rang: no method of the comparison"),
    ],
)
def test_what_cannot_be_used_is_one_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    """Exit code 2, the text on standard error, no table."""
    places = ["--preset", "laptop", "--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]
    result = invoke("compare", [*arguments, *places])
    assert result.code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_comparison_leaves_all_its_files(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """From the command line in this process, with a method that the user can mend: exit code 2, the table stands."""
    data = {"source": "demo", "train_examples": 4, "test_examples": 2, "max_source_tokens": 32, "max_target_tokens": 9}
    config = {
        "model": {"name": str(model_folders["llama"]), "precision": "fp32"},
        "data": data,
        "train": {"batch_size": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config | {"order": "roget", "workers": 0}))
    places = [
        "--store",
        tmp_path / "store",
        "--output",
        tmp_path / "out",
        "--tracking",
        f"sqlite:///{tmp_path / 'm.db'}",
    ]
    methods = ["--method", "sin_lora:rank=2", "--method", "bad=sin_lora:rank=0"]
    flags = [*methods, "--config", tmp_path / "run.yaml", "--preset", "laptop", *places]
    result = invoke("compare", flags)
    assert result.code == 2, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    files = {
        "leaderboard.csv",
        "leaderboard.md",
        "leaderboard.tex",
        "cells.csv",
        "compare.json",
        "report.html",
        "sequences",
    }
    assert files <= names
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {cell["label"]: cell["status"] for cell in record["cells"]} == {
        "sin_lora:rank=2": "finished",
        "bad": "failed",
    }
    (folder,) = (tmp_path / "out" / "sequences").iterdir()
    assert (folder / "matrix.png").stat().st_size > 0
    assert os.sep in result.stdout
