"""Hub data into a folder, from a stand-in of the hub: rows, counts and hashes, and a stream that reads the copy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks.fetch import fetch as copy
from raycl.tasks.load import load_tasks
from tests.kit.hub import COMMIT, hub
from tests.kit.streams import ROWS, TEAM, write_csv, write_jsonl, write_stream


def fetch(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`raycl data fetch`, whose hub is at `address`."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    command = [sys.executable, "-m", "raycl", "data", "fetch", *arguments]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("left", "found"), [("{", "Expecting property name"), ("[]", "a list")])
def test_a_damaged_manifest_is_refused_and_kept(left: str, found: str, tmp_path: Path) -> None:
    """The next step is the user's: nothing is overwritten."""
    (tmp_path / "manifest.json").write_text(left)
    with pytest.raises(DataError, match=f"manifest.json: got {found}.*restore the file"):
        copy([], tmp_path, 42, lambda name, record: None)
    assert (tmp_path / "manifest.json").read_text() == left


def test_own_and_published_tasks_are_copied_and_read_from_the_copy(tmp_path: Path) -> None:
    root, copies = tmp_path / "root", tmp_path / "copies"
    (root / "me/tickets").mkdir(parents=True)
    write_csv(root / "me/tickets/train.csv")
    (root / "stanfordnlp/imdb").mkdir(parents=True)
    films = [{"text": f"film {i}", "label": i % 2} for i in range(6)]
    for split in ("train", "test"):
        write_jsonl(root / f"stanfordnlp/imdb/{split}.jsonl", films)
    write_csv(tmp_path / "t.csv")
    here = TEAM | {"name": "here", "data": "t.csv"}
    stream = write_stream(tmp_path, TEAM | {"data": {"hub": "me/tickets", "revision": COMMIT}}, {"use": "imdb"}, here)
    with hub(root) as address:
        done = fetch(address, tmp_path / "home", "--stream", stream, "--to", str(copies))
    assert done.returncode == 0, done.stderr
    assert "team: team/train.jsonl  30 rows" in done.stdout

    manifest = json.loads((copies / "manifest.json").read_text())
    assert manifest["team"]["revision"] == COMMIT
    assert {name: facts["rows"] for task in manifest.values() for name, facts in task["files"].items()} == {
        "team/train.jsonl": 30,
        "imdb/train.jsonl": 6,
        "imdb/test.jsonl": 6,
    }
    for task in manifest.values():
        for name, facts in task["files"].items():
            assert hashlib.sha256((copies / name).read_bytes()).hexdigest() == facts["sha256"]

    from_copy, beside = load_tasks(["team", "here"], DataSpec(stream=str(copies / "my.yaml")))
    assert [one.prompt for one in beside.train] == [
        one.prompt for one in from_copy.train
    ]  # a file that stays where it is
    (from_file,) = load_tasks(["team"], DataSpec(stream=write_stream(tmp_path, TEAM | {"data": "t.csv"})))
    assert from_copy.train_fingerprint == from_file.train_fingerprint
    assert len(from_copy.train) + len(from_copy.test) == len(ROWS)
    (imdb,) = load_tasks(["imdb"], DataSpec(source=str(copies)))
    assert sorted(one.body for one in imdb.train) == [f"film {i}" for i in range(6)]
    assert imdb.labels == ("Good", "Bad")


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    stream = write_stream(tmp_path, TEAM | {"data": {"hub": "me/nothing"}})
    with hub(tmp_path / "root") as address:
        done = fetch(address, tmp_path / "home", "--stream", stream, "--to", str(tmp_path / "copies"))
    assert done.returncode == 2
    assert "hub data set 'me/nothing'" in done.stderr
    assert "Traceback" not in done.stderr
