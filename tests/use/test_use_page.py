"""Every command of docs/use.md, one after another, as a user types them, on a tiny model."""

from __future__ import annotations

import json
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
PAGE = (ROOT / "docs" / "use.md").read_text()
COMMANDS = re.findall(r"^    (raycl .*)$", PAGE, re.MULTILINE)


def test_every_command_of_the_page(flags: MakeFlags, commands: Commands, tmp_path: Path) -> None:
    fields = {name: value for name, value in flags.spec("sin_lora", "llama").items() if name != "method"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(fields))
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAYCL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "COLUMNS": "160",
    }
    small = ["--preset", "laptop", "--config", str(tmp_path / "small.yaml")]
    shell = Shell(tmp_path, environment, small, commands)
    for line in COMMANDS:
        shell.run(line)
    said = shell.said
    assert "roget 0." in said['raycl generate demo-run "Entry: oak" --task roget --explain']
    lines = said["raycl generate demo-run --file prompts.txt --json"].splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "two"]
    assert re.match(r"plots: \d+\.\d  \(8 examples\)", said["raycl evaluate demo-run --tasks plots"])
    assert "accepted" in said["raycl append routed-run --task plots --max-forgetting 5 --tag production"]
    assert [line.split(":")[0] for line in said["raycl evaluate smaller"].splitlines()] == ["roget", "plots"]
    assert (
        "the adapter is stage 3"
        in said["raycl import-adapter from-elsewhere --task plots --to routed-run --tag with-plots"]
    )
    assert "plots (imported)" in said["raycl log with-plots"]
    assert said["raycl log production"].splitlines()[1].split()[:2] == ["4", "speakers"]
    shown = said["raycl show production@2"]
    assert "after stage" in shown and re.search(r"^ +2 +snippets .*rank 8", shown, re.MULTILINE)
    assert len(json.loads(said["raycl show production --json"])["stages"]) == 4
    assert re.search(r"1 +method\.rank +8 +4", said["raycl diff production other-run"])
    assert "no stage is the same" in said["raycl diff production other-run"]
    assert "one adapter of rank 32, exact" in said["raycl export sum-run --to adapter"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    whole = said["raycl export sum-run --to whole --form model --dtype bf16"]
    assert "not exact: rounded to bf16" in whole and "logits change by at most" in whole
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    small = said["raycl export sum-run --to small --compress 4"]
    assert len(re.findall(r"^\w+: \d+\.\d as served, \d+\.\d in the export", small, re.MULTILINE)) == 4
    assert "2 adapters of rank 8, exact" in said["raycl export routed-run --to routed"]
    assert "not exact: approximated" in said["raycl export demo-run --to mean --approximate mean"]
