"""`import raycl`: the names it gives, what it costs, and the five lines of the README."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raycl
from tests.kit.places import ROOT

NAMES = [
    "AccuracyMatrix",
    "Branch",
    "ComparisonResult",
    "DataError",
    "Event",
    "Example",
    "ExportChange",
    "ForeignAdapter",
    "Finding",
    "GridSpec",
    "Listener",
    "Method",
    "MethodParams",
    "Options",
    "Places",
    "RunSpec",
    "SequenceJob",
    "SequenceResult",
    "Serving",
    "SetupError",
    "SpecError",
    "StagePart",
    "StageState",
    "Store",
    "StoreError",
    "SweepRequest",
    "SweepResult",
    "SweepSettings",
    "Task",
    "Terminal",
    "Upstream",
    "UserError",
    "__version__",
    "append",
    "examine",
    "export",
    "find_head",
    "forget",
    "import_adapter",
    "load",
    "look_ahead",
    "make_app",
    "make_job",
    "new_method",
    "predictions",
    "push",
    "resolve",
    "run_comparison",
    "run_sequence",
    "run_sweep",
]


def test_the_names_are_frozen() -> None:
    """Programs of others use them: a name that goes or changes its home is a new version of raycl."""
    assert sorted(raycl.__all__) == sorted(NAMES)
    assert sorted(raycl.__dir__()) == sorted(NAMES)
    homes = [name for names in raycl.HOMES.values() for name in names]
    assert sorted([*homes, "__version__"]) == sorted(NAMES)
    for name in NAMES:
        assert getattr(raycl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        raycl.__getattr__("train")


def test_what_it_gives_is_documented() -> None:
    """Classes and functions say what they are for."""
    for name in NAMES:
        value = getattr(raycl, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_the_import_brings_nothing_with_it() -> None:
    """Neither torch nor ray nor pydantic: only the standard library."""
    code = "import sys; before = set(sys.modules); import raycl; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "ray", "pydantic", "numpy", "transformers", "mlflow", "yaml", "typer"}
    assert not heavy & {name.strip("'\" ,[]").partition(".")[0] for name in done.stdout.split()}


def test_it_is_typed() -> None:
    """Checkers of other programs read raycl's annotations."""
    assert (ROOT / "raycl" / "py.typed").is_file()


def test_the_readmes_sequence_from_python_runs(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code block of the README, with a tiny model and few examples in place of the packaged one."""
    (code,) = re.findall(r"```python\n(import raycl\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    small = {
        "model": {"name": str(model_folders["llama"]), "precision": "fp32"},
        "data": {"train_examples": 8, "test_examples": 4, "max_source_tokens": 48, "max_target_tokens": 6},
        "method": {"rank": 2},
    }
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    original = raycl.resolve
    monkeypatch.setitem(raycl.__dict__, "resolve", lambda preset, layers: original(preset, [*layers, small]))
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "After stage 4/4: AP" in out
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
