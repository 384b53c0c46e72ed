"""An export on the hub, against a stand-in of it: what is written where, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycl import SpecError, push
from tests.kit.hub import COMMIT, TOKEN, hub


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as an export leaves it."""
    folder = tmp_path / "made"
    (folder / "adapters" / "one").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# A card\n")
    (folder / "adapters" / "one" / "adapter_config.json").write_text("{}")
    return folder


def pushed(address: str, home: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """`raycl push`, whose hub is at `address`."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | settings
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "raycl", "push", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_an_export_is_put_into_a_repository(made: Path, tmp_path: Path) -> None:
    """Made where it is not there, private if so asked; a branch beside main; a public one is not taken for a private one."""
    root = tmp_path / "root"
    with hub(root) as address:
        first = pushed(address, tmp_path / "home", str(made), "team/tickets")
        again = pushed(address, tmp_path / "home", str(made), "team/tickets", "--revision", "next")
        public = pushed(address, tmp_path / "home", str(made), "team/tickets", "--private")
        hidden = pushed(address, tmp_path / "home", str(made), "team/secret", "--private")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == f"{address}/team/tickets/commit/{COMMIT}"
    for done, branch in ((first, "main"), (again, "next")):
        assert done.returncode == 0, done.stderr
        for name in ("README.md", "adapters/one/adapter_config.json"):
            assert (root / "team/tickets" / branch / name).read_bytes() == (made / name).read_bytes()
    assert public.returncode == 2 and "is there already and is public" in public.stderr
    assert hidden.returncode == 0 and (root / "team/secret/.private").read_text() == "true"


def test_what_cannot_be_put_there_is_said(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is no export, no token, a token that may not write: nothing is written."""
    root = tmp_path / "root"
    root.mkdir()
    with hub(root) as address:
        refused = pushed(address, tmp_path / "home", str(made), "team/tickets", token="hf_of_nobody")
        odd = pushed(address, tmp_path / "home", str(made), "a/b/c")
    assert (
        refused.returncode == 2 and "the hub did not take it" in refused.stderr and "hf_of_nobody" not in refused.stderr
    )
    assert odd.returncode == 2 and "allowed: org/name" in odd.stderr
    assert list(root.iterdir()) == []
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(SpecError, match="HF_TOKEN: is not set"):
        push(made, "team/tickets")
    with pytest.raises(SpecError, match="is no export"):
        push(tmp_path, "team/tickets")
