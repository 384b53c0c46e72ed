"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import re

import pytest

from tests.kit.places import ROOT

PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip()[:40] for row in ROWS])
def test_every_promise_names_its_test(row: list[str]) -> None:
    """A row has three cells; a test named without a folder is in that of the one before."""
    promise, tests, figure = map(str.strip, row)
    assert promise and figure
    folder = ""
    for name in re.findall(r"`([^`]+)`", tests):
        if name.startswith("raycl "):
            continue
        folder = name.rpartition("/")[0] or folder
        assert (ROOT / (name if "/" in name else f"{folder}/{name}")).exists(), name
