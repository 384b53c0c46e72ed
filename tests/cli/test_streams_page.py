"""Every command of docs/streams.md, one after another, as a user types them, on a tiny model and a stand-in of the hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.state.store import Store
from tests.kit.commands import Commands
from tests.kit.hub import COMMIT, hub
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags
from tests.kit.shell import Shell
from tests.kit.streams import TEAM, write_csv, write_jsonl

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "streams.md").read_text()
COMMANDS = re.findall(r"^    (raycl .*)$", PAGE, re.MULTILINE)
OF_HUB = ("hub.yaml", "data fetch")
"""What is in a command that asks the hub: its client reads the environment while it is imported."""
TABLES: dict[str, dict[str, Any]] = {
    "fancyzhx/dbpedia_14": {"title": "a", "content": "b", "label": 1},
    "fancyzhx/ag_news": {"text": "t", "label": 3},
    "yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes": {
        "review_title": "a",
        "review_text": "b",
        "class_index": 5,
    },
    "community-datasets/yahoo_answers_topics": {
        "question_title": "a",
        "question_content": "b",
        "best_answer": "c",
        "topic": 9,
    },
}
"""A row of each table of std-1."""


def prepared(folder: Path) -> Path:
    """What the page takes for granted: the table, its streams, the function; returns the root of a hub."""
    (support,) = re.findall(r"```yaml\n(stream: support\n.*?)```", PAGE, re.DOTALL)
    (scorer,) = re.findall(r"```python\n(def first_word.*?)```", PAGE, re.DOTALL)
    (folder / "support.yaml").write_text(support)
    (folder / "scorers.py").write_text(scorer)
    write_csv(folder / "tickets.csv")
    streams = {
        "hub": TEAM | {"data": {"hub": "me/tickets", "revision": COMMIT}},
        "scored": TEAM | {"data": "tickets.csv", "metric": ["exact_match", "scorers:first_word"]},
    }
    for name, task in streams.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"stream": name, "tasks": [task]}))
    root = folder / "root"
    for place, row in TABLES.items():
        (root / place).mkdir(parents=True)
        for split in ("train", "test"):
            write_jsonl(root / place / f"{split}.jsonl", [row] * 3)
    (root / "me/tickets").mkdir(parents=True)
    write_csv(root / "me/tickets/train.csv")
    return root


def test_every_command_of_the_page(flags: MakeFlags, commands: Commands, tmp_path: Path) -> None:
    """The stream is checked, shown, trained in two orders that share what they can, and scored by a function of its own."""
    root = prepared(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(flags.spec("sin_lora", "llama")))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAYCL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "COLUMNS": "160",
    }
    small = ["--preset", "laptop", "--config", str(tmp_path / "small.yaml")]
    with hub(root) as address:
        shell = Shell(tmp_path, environment | {"HF_ENDPOINT": address}, small, commands)
        for line in COMMANDS:
            shell.run(line, cold=any(name in line for name in OF_HUB))
    checked = shell.said["raycl tasks check support.yaml"]
    assert "team  train " in checked and "a run would start" in checked and "Which team should answer" in checked
    assert "name: team" in shell.said["raycl tasks show team --stream support.yaml"]
    assert "also: reply  chrf" in shell.said["raycl run --stream support.yaml --order nightly --method inc_lora"]
    scored = shell.said["raycl run --stream scored.yaml --allow-code"]
    assert "also: team  scorers:first_word" in scored
    assert "team: team/train.jsonl  30 rows" in shell.said["raycl data fetch --stream hub.yaml --to copies"]
    manifest = json.loads((tmp_path / "copies/manifest.json").read_text())
    assert set(manifest) == {"team", "dbpedia", "amazon", "yahoo", "agnews"}
    store = Store(str(tmp_path / "home" / "store"))
    assert len(store.stage_keys()) == 2 + 2 + 1
