"""Every command of docs/own-methods.md, one after another, as a user types them, on a tiny model and Ray workers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from raycl.state.store import Store
from tests.kit.cluster import Head
from tests.kit.commands import Commands
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags
from tests.kit.shell import Shell

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "own-methods.md").read_text()
COMMANDS = re.findall(r"^    ((?:raycl|cd|pytest|pip) ?.*|pytest)$", PAGE, re.MULTILINE)


def test_the_page_is_a_path_from_nothing_to_an_installed_method(
    flags: MakeFlags, commands: Commands, ray_head: Head, tmp_path: Path
) -> None:
    """The skeleton passes the matrix, trains through Ray workers, stands in a comparison and, installed, in the listing; the
    installed method needs no stage anew."""
    fields = {name: value for name, value in flags.spec("sin_lora", "llama").items() if name != "workers"}
    fields["method"] = {"rank": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(fields))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": ray_head.address,
        "RAYCL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "160",
        "CUDA_VISIBLE_DEVICES": "",
    }
    small = ["--preset", "laptop", "--config", str(tmp_path / "small.yaml")]
    shell = Shell(tmp_path, environment, small, commands)
    installed = COMMANDS.index("pip install -e .")
    for place, line in enumerate(COMMANDS):
        shell.run(line, cold=place > installed)  # only a new process finds what was installed
    said = shell.said
    assert re.search(r"\d+ passed", said["pytest"]) and "failed" not in said["pytest"]
    assert "1 Ray Train worker" in said["raycl run --method ema:Ema --order demo"]
    assert "Ema:decay=0.9" in said["raycl compare --method ema:Ema:decay=0.9 --method sin_lora --order demo"]
    assert "method.decay" in said["raycl fields ema:Ema"]
    assert "ema:Ema  one LoRA branch" in said["raycl methods --method ema:Ema"]
    assert "package:         ema 0.1.0 (ema:Ema)" in said["raycl methods"]
    assert "4 in the store, 0 to run" in said["raycl run --method ema --order demo"]
    store = Store(str(tmp_path / "home" / "store"))
    recipes = [store.manifest(key).recipe["method"] for key in store.stage_keys()]
    assert [one["name"] for one in recipes if "source" in one].count("ema:Ema") == 4 + 3, "stage 1 knows no decay"
    (code,) = re.findall(r"```python\n(import raycl\n.*?)```", PAGE, re.DOTALL)
    shell.python(code.replace('[{"order"', f'[{fields}, {{"order"') + "print(result.trained)\n")
    assert shell.said["python"].splitlines()[-1] == "[]"
