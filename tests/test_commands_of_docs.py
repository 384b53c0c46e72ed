"""The commands on the pages that have no test of their own: none is mistyped, and what can be run here is.

Runs are taken as far as their plan: flags, settings, data and keys are read as in a run, and nothing is trained; sweeps and
comparisons as far as their drivers. The rest answers. What is not run here is listed with the reason.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.kit.cli import Answer, invoke
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags

PAGES = (
    "README",
    "docs/comparing",
    "docs/configuration",
    "docs/looking",
    "docs/models",
    "docs/reproductions",
    "docs/sweeps",
)
NOT_HERE = {
    "raycl generate RUN": "docs/use.md, whose commands all run",
    "raycl evaluate RUN": "docs/use.md",
    "raycl probe RUN": "docs/use.md",
    "raycl export RUN": "docs/use.md",
    "raycl serve RUN": "docs/serving.md",
    "raycl tasks check support.yaml": "docs/streams.md",
    "raycl run --stream support.yaml": "docs/streams.md",
    "raycl doctor": "tests/doctor",
    "raycl --help": "tests/cli",
    "raycl reproduce all --scale smoke": "tests/reproduction runs every kind of row at this scale",
    "raycl reproduce slao/main --scale paper": "needs GPUs, which the page says",
    "raycl reproduce am_lora/table1 --scale smoke": "tests/reproduction",
    "raycl run --model FOLDER --set model.quantization=4bit": "needs CUDA, which the page says",
}
"""Beginning of a line -> where its like is run, or why it is not."""
PLANNED = ("raycl run", "raycl plan", "raycl sweep", "raycl compare")


def commands_of(page: str) -> list[str]:
    """The lines of a page that are typed, without what explains them; a line that goes on is one."""
    text = re.sub(r"\\\n\s*", "", (ROOT / f"{page}.md").read_text(encoding="utf-8"))
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if language in ("", "sh") for line in block.splitlines()]
    lines += re.findall(r"^    (.*)$", text, re.MULTILINE)
    return [re.split(r"\s+#|\s{3,}", line)[0].rstrip() for line in lines if re.match("raycl( |$)", line)]


HERE = [(page, line) for page in PAGES for line in commands_of(page) if not line.startswith(tuple(NOT_HERE))]


class Planned(Exception):
    """Raised in the place of the work, where all is read and resolved."""


@pytest.fixture
def say(fifteen: Path, flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Answer]:
    """Types a line in a folder of its own, with a tiny model."""
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYCL_DATA", str(fifteen))
    monkeypatch.setenv("RAYCL_DEBUG", "1")  # quiet mode would silence the other tests' loggers as well
    small = flags.spec("sin_lora", "llama") | {"train": {"batch_size": 4}}
    small = {name: value for name, value in small.items() if name != "method"}
    small["data"] = {"max_source_tokens": 48, "max_target_tokens": 20, "train_examples": 4, "test_examples": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))

    def typed(line: str) -> Answer:
        _, verb, *rest = shlex.split(line)
        if line.startswith(PLANNED):
            rest += ["--config", str(tmp_path / "small.yaml"), "--preset", "laptop"]
        return invoke(verb, rest)

    return typed


def test_every_command_has_a_place() -> None:
    """Nothing in the list of what is run elsewhere is left over, and elsewhere is there."""
    lines = [line for page in PAGES for line in commands_of(page)]
    assert len(HERE) > 15
    for begin, where in NOT_HERE.items():
        assert any(line.startswith(begin) for line in lines), begin
        assert (ROOT / where.partition(" ")[0].strip(",")).exists() or "which the page says" in where


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in HERE if line.startswith("raycl run")])
def test_a_run_is_planned(page: str, line: str, say: Callable[[str], Answer], model_folders: dict[str, Path]) -> None:
    """As `raycl plan`, which takes the flags of a run, and reads the data."""
    answer = say(line.replace("raycl run", "raycl plan").replace("FOLDER", str(model_folders["llama"])))
    assert answer.code == 0, f"{page}: {line}\n{answer.output}"
    assert "to run" in answer.stdout


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page, line in HERE if line.startswith(("raycl sweep", "raycl compare"))]
)
def test_many_sequences_are_read_and_resolved(
    page: str, line: str, say: Callable[[str], Answer], fifteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the drivers, which begin with Ray."""

    def stop(asked: object, *_: object) -> None:
        raise Planned(type(asked).__name__)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("raycl.comparison.driver.run_comparison", stop)
    monkeypatch.setattr("raycl.sweep.run.run_sweep", stop)
    answer = say(line.replace("FOLDER", str(fifteen)))
    assert "Planned: GridSpec" in answer.output or "Planned: SweepRequest" in answer.output, (
        f"{page}: {line}\n{answer.output}"
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_other_commands_answer(page: str, say: Callable[[str], Answer], flags: MakeFlags, tmp_path: Path) -> None:
    """On a run that is there, where a line names one."""
    lines = [
        line for one, line in HERE if one == page and not line.startswith(("raycl run", "raycl sweep", "raycl compare"))
    ]
    run = tmp_path / "run"
    if any("RUN" in line for line in lines):
        answer = say(f"raycl run --order agnews,dbpedia --output {run} --tracking off")
        assert answer.code == 0, answer.output
    for line in lines:
        answer = say(line.replace("RUN", str(run)))
        assert answer.code == 0, f"{line}\n{answer.output}"
