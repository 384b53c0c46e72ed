"""A head node of its own with token authentication, and jobs submitted to it as a user submits them."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.cluster import RAY, START_SECONDS, Head, clean_environment, head_node
from tests.kit.runs import MakeFlags

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""The environment that lets a client in."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node with a dashboard, which takes jobs, and a token."""
    with head_node(TOKEN, dashboard=True) as head:
        yield head


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean copy of the committed files."""
    data = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path / "checkout", filter="data")
    shutil.rmtree(tmp_path / "checkout" / "benchmarks", ignore_errors=True)
    return tmp_path / "checkout"


def submit(
    head: Head, checkout: Path, arguments: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`ray job submit --working-dir CHECKOUT -- python jobs/sequence.py ARGUMENTS`."""
    home = {"env_vars": {"RAYCL_HOME": str(checkout.parent / "home"), "HF_HUB_OFFLINE": "1"}}
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", str(checkout)]
    command += ["--runtime-env-json", json.dumps(home), "--", sys.executable, "jobs/sequence.py", *arguments]
    deadline = time.monotonic() + START_SECONDS
    while True:
        done = subprocess.run(
            command, env=clean_environment() | environment, capture_output=True, text=True, timeout=400, check=False
        )
        # The dashboard answers some seconds before the agent that starts jobs has registered.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def test_a_job_without_the_token_is_refused(head: Head, checkout: Path, tmp_path: Path) -> None:
    """The head node answers 401, the client says why, and nothing runs."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=60)
    strange = {"RAY_AUTH_MODE": "disabled"}
    done = submit(head, checkout, ["--order", "demo", "--store", str(tmp_path / "store")], strange)
    assert done.returncode != 0
    assert "token authentication is enabled" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_submitted_job_runs_a_sequence(head: Head, checkout: Path, flags: MakeFlags, tmp_path: Path) -> None:
    """With the token the job runs on the cluster's workers, its log is plain lines, and the store is sound."""
    arguments = flags(tmp_path / "store", "gain_o", "llama", "roget", workers=1, eval__forward="false")
    done = submit(head, checkout, arguments, TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 1/1 roget: step 4/4" in done.stdout
    assert "succeeded" in done.stdout
    store = Store(str(tmp_path / "store"))
    assert len(store.stage_keys()) == 1
    assert store.verify() == []
