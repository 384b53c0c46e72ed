"""Every command of docs/tutorial.md, one after another, on a tiny model."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.kit.commands import Commands
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags
from tests.kit.shell import Shell

pytestmark = pytest.mark.slow
PAIR = (("sin_lora", "first"), ("inf_lora", "second"))
LINES = re.findall(r"^    (raycl .*)$", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE)


def test_every_command_of_the_tutorial(flags: MakeFlags, commands: Commands, tmp_path: Path) -> None:
    """The comparison finds both runs in the store, as the page says."""
    fields = {name: value for name, value in flags.spec("sin_lora", "llama").items() if name != "method"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(fields))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAYCL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",
    }
    small = ["--preset", "laptop", "--config", str(tmp_path / "small.yaml")]
    shell = Shell(tmp_path, environment, small, commands)
    for line in LINES:
        shell.run(line)
    first, second = (shell.said[f"raycl run --order demo --method {name} --output {place}"] for name, place in PAIR)
    assert "4 to run" in first and "4 to run" in second
    compared = shell.said["raycl compare --method sin_lora --method inf_lora --order demo --output pair"]
    assert "2 sequences, 2 in the store, 0 to run" in compared
    for page in ("first/report.html", "second/report.html", "pair/report.html", "adapter/README.md"):
        assert (tmp_path / page).is_file(), page
