"""The command line: quick help, and one clear message with exit code 2 for whatever a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycl.methods.o_lora import OLora
from raycl.state.store import Store
from tests.kit.cli import invoke

ROOT = Path(__file__).parents[2]
JOB = str(ROOT / "jobs" / "sequence.py")
ROWS = [{"label": "Good", "sentence": "Text: warm"}, {"label": "Bad", "sentence": "Text: dull"}]
HEAVY = ("torch", "ray", "transformers", "deepspeed", "mlflow", "peft", "pandas", "matplotlib", "datasets")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that was used before, with a file a careless run could harm."""
    folder = tmp_path / "store"
    Store(str(folder)).check_usable()
    (folder / "stages").mkdir()
    (folder / "stages" / "note.txt").write_text("mine")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """sst2 in the benchmark layout."""
    return write_task(tmp_path / "data", ROWS)


@pytest.fixture
def refused(
    store: Path, data: Path, tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must be refused, and returns its message."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")  # quiet mode would silence the other tests' loggers as well
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("raycl.sequence.chronicle.Chronicle.start", _never)

    def run(*flags: object, **replaced: object) -> str:
        given = {"order": "sst2", "data": data, "model": tiny_folders["llama"], "store": store, "workers": 0}
        given |= {"output": tmp_path / "out", "preset": "laptop"} | replaced
        known = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
        before = tree(store)
        result = invoke("run", [*known, *flags])
        assert result.code == 2, (result.code, result.output)
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert tree(store) == before
        return result.stderr

    return run


def _never(*arguments: Any) -> None:
    raise AssertionError("the sequence was started")


def write_task(root: Path, train: list[Any], test: list[Any] | None = None) -> Path:
    """sst2 in the benchmark layout with these rows."""
    folder = root / "sst2"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("test", ROWS if test is None else test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "labels.json").write_text('["Good", "Bad"]')
    return root


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder (or the file itself), with its bytes."""
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def job(*flags: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """`python jobs/sequence.py flags` in a process of its own."""
    values = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run([sys.executable, JOB, *flags], env=values, capture_output=True, text=True, timeout=120)


def test_help_names_every_flag() -> None:
    """In a process of its own, as `ray job submit` starts it."""
    done = job("--help", COLUMNS="200")
    assert done.returncode == 0
    flags = "order method model data preset seed workers store config set tracking output fields"
    for flag in flags.split():
        assert f"--{flag}" in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--no-such-flag"])
def test_reading_the_flags_imports_nothing_heavy(flag: str) -> None:
    """Neither torch nor ray is in the process that answers."""
    code = f"""
import json, runpy, sys
sys.argv = [{JOB!r}, {flag!r}]
try:
    runpy.run_path({JOB!r}, run_name="__main__")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    (listed,) = (line for line in done.stderr.splitlines() if line.startswith("["))
    assert "typer" in json.loads(listed)
    assert not set(HEAVY) & set(json.loads(listed))


@pytest.mark.parametrize("method", [None, "o_lora"])
def test_fields_lists_every_field_of_a_method(method: str | None) -> None:
    """With the default method, or the one that is named."""
    result = invoke("run", ["--fields", *(["--method", method] if method else [])])
    assert result.code == 0
    assert result == invoke("fields", [method] if method else [])
    for name in ("train.lr", "data.max_source_tokens", "method.lambda1", "eval.forward"):
        assert name in result.stdout
    assert ("method.gate_hidden" in result.stdout) == (method is None)


def test_fields_show_what_a_preset_makes_of_them() -> None:
    """Beside the default, and only where the preset sets the field; `paper` with the method's published settings."""
    result = invoke("fields", ["o_lora", "--preset", "laptop"])
    assert result == invoke("run", ["--fields", "--method", "o_lora", "--preset", "laptop"])
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert lines["data.train_examples"].endswith("default None; preset laptop 256]")
    assert lines["train.warmup"].endswith("default 0.0]")
    paper = invoke("fields", ["o_lora", "--preset", "paper"]).stdout
    published = OLora.settings("t5", "std-1")["train"]["lr"]
    assert f"default 0.0005; preset paper {published!r}]" in paper
    assert "allowed: laptop, paper, demo" in invoke("fields", ["o_lora", "--preset", "fast"]).stderr


def test_fields_of_an_unknown_method_are_refused() -> None:
    """With the nearest name, set apart from the list of all."""
    result = invoke("fields", ["olora"])
    assert (result.code, result.stdout) == (2, "")
    assert "unknown method (did you mean 'o_lora'?); allowed: seq_ft," in result.stderr


@pytest.mark.parametrize(
    ("replaced", "flags", "words"),
    [
        ({"order": "std-9"}, [], ["'std-9'", "std-1", "1 to 6"]),
        ({"order": "sst2,nonsense"}, [], ["'nonsense'", "next step"]),
        ({"order": ""}, [], ["order"]),
        ({"order": "sst2,sst2"}, [], ["only once"]),
        ({}, ["--method", "gainlora"], ["unknown method", "'gain_lora'"]),
        ({}, ["--set", "train.rate=1"], ["train.rate: unknown field", "raycl fields"]),
        ({}, ["--set", "method.lambda=1", "--set", "seed=-1"], ["2 problems", "lambda: unknown field", "seed"]),
        ({}, ["--set", "train.lr"], ["--set 'train.lr'", "method.rank=8"]),
        ({}, ["--set", "train.lr=[1,"], ["not valid YAML"]),
        ({}, ["--set", "train.lr=[1e-3, 1e-4]"], ["train.lr: a list of 2 values", "1 values (one per stage)"]),
        ({}, ["--config", "/no/such.yaml"], ["/no/such.yaml", "cannot be read"]),
        ({"preset": "fast"}, [], ["--preset 'fast'", "laptop, paper, demo"]),
        ({"data": "/no/such/folder"}, [], ["/no/such/folder"]),
        ({"order": "cb"}, [], ["task cb", "no training file"]),
        ({"workers": 3}, [], ["train.batch_size: 8", "3 workers", "multiple of 3"]),
        ({"workers": -1}, [], ["workers", "-1"]),
        ({"workers": 2}, ["--set", "train.micro_batch_size=3"], ["train.micro_batch_size: 3"]),
        ({"model": "/no/model"}, [], ["model.name", "'/no/model'", "packaged"]),
        ({}, ["--tracking", "somewhere"], ["tracking URI 'somewhere'", "sqlite:///"]),
        ({"data": "demo"}, [], ["demo"]),
        ({}, ["--set", "train.checkpoint_every=2", "--set", "train.zero_stage=1"], ["train.checkpoint_every"]),
    ],
)
def test_a_bad_flag_is_one_message(
    refused: Callable[..., str], replaced: dict[str, Any], flags: list[str], words: list[str]
) -> None:
    """Exit code 2, the value and what is allowed on standard error, nothing started, the store untouched."""
    text = refused(*flags, **replaced)
    assert text.startswith("error: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([], ["no usable rows"]),
        (["{"], ["train.jsonl", "line 1"]),
        ([{"sentence": "Text: x"}], ["'label'", "missing"]),
        ([{"label": "Good", "sentence": ""}], ["'sentence'", "not empty"]),
        ([*ROWS, {"label": "Godo", "sentence": "Text: x"}], ["'Godo'", "nearest: 'Good'", "Good, Bad"]),
    ],
)
def test_bad_data_are_one_message(
    refused: Callable[..., str], tmp_path: Path, train: list[Any], words: list[str]
) -> None:
    """Empty, malformed or wrongly labelled data: the file, the place and what is allowed."""
    text = refused(data=write_task(tmp_path / "bad", train))
    assert "task data" in text
    for word in words:
        assert word in text


def test_a_folder_without_data_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    """It says where the task was looked for."""
    (tmp_path / "empty").mkdir()
    assert "no training file" in refused(data=tmp_path / "empty")


def test_a_model_folder_without_configuration_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    """A folder that is no model."""
    (tmp_path / "model").mkdir()
    assert "has no config.json" in refused(model=tmp_path / "model")


def test_an_unreachable_hub_is_one_message(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the model and for the data: what can be done without a network."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "--model packaged" in refused(model="owner/model")
    assert "--order demo" in refused(data="hub")


def test_a_store_of_another_schema_is_one_message(refused: Callable[..., str], store: Path) -> None:
    """It is left as it is."""
    marker = store / "raycl-store.json"
    marker.write_text(marker.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    text = refused()
    assert "raycl-store.json" in text
    assert "99" in text


def test_a_store_that_is_a_file_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    """The file is left as it is."""
    path = tmp_path / "file"
    path.write_text("mine")
    assert str(path) in refused(store=path)
    assert path.read_text() == "mine"


def test_a_folder_of_somebody_else_is_no_store(refused: Callable[..., str], tmp_path: Path) -> None:
    """A folder with other files is never taken over."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("theirs")
    assert "thesis.tex" in refused(store=tmp_path / "theirs")
    assert tree(tmp_path / "theirs") == {"thesis.tex": b"theirs"}


def test_an_output_folder_that_cannot_be_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").write_text("mine")
    assert "--output" in refused(output=tmp_path / "file" / "deeper")


def test_no_store_is_made_for_a_refused_command(refused: Callable[..., str], tmp_path: Path) -> None:
    """Bad flags leave no trace where the store would have been."""
    refused("--set", "train.rate=1", store=tmp_path / "new")
    refused(store=tmp_path / "new", data="/no/such/folder")
    refused(store=tmp_path / "new", workers=3)
    assert not (tmp_path / "new").exists()


def test_a_refused_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The same as a user sees it: exit code 2, one message on standard error, nothing on standard output."""
    done = job("--order", "std-9", "--store", str(tmp_path / "store"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: order: 'std-9' is not known")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_an_interrupt_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with exit code 130 and the way to go on."""
    monkeypatch.setattr("raycl.sequence.driver.plan_job", _interrupted)
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    result = invoke("run", ["--preset", "laptop"])
    assert result.code == 130
    assert "same command continues" in result.stderr


def _interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_an_error_of_ours_is_a_traceback_and_where_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is never dressed up as the user's mistake: exit code 1, and what to attach."""

    def broken(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("raycl.sequence.driver.plan_job", broken)
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    result = invoke("run", ["--preset", "laptop"])
    assert result.code == 1
    assert "RuntimeError: a bug" in result.stderr and "raycl version" in result.stderr


def test_the_environment_gives_the_data_folder(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAYCL_DATA stands in for --data; the flag wins."""
    monkeypatch.setenv("RAYCL_DATA", "/from/the/environment")
    assert "/from/the/environment" in refused(data=None)
    assert "/from/the/flag" in refused(data="/from/the/flag")


@pytest.mark.parametrize(("verb", "arguments"), [("run", ["--no-such-flag"]), ("run", ["--seed", "x"]), ("nosuch", [])])
def test_what_typer_refuses_is_no_defect(verb: str, arguments: list[str]) -> None:
    """An unknown verb or flag, a value of a wrong type: exit code 2, no traceback."""
    result = invoke(verb, arguments)
    assert result.code == 2
    assert "Traceback" not in result.output and "defect" not in result.output
    assert "raycl" in result.stderr
