"""docs/doctor.md names the checks there are."""

from __future__ import annotations

import re

from raycl.doctor import run
from tests.kit.places import ROOT

PAGE = (ROOT / "docs" / "doctor.md").read_text()
(CHECKS,) = (part.split("\n\n")[0] for part in re.split(r"^\| --- .*\n", PAGE, flags=re.MULTILINE)[1:])


def test_the_table_lists_every_check() -> None:
    """Each once, by the name that its line has."""
    listed = [line.split("|")[1].strip() for line in CHECKS.splitlines()]
    checks = [check.__name__.replace("_", " ") for check in run.QUICK + run.THOROUGH]
    assert sorted(listed) == sorted("packaged model" if name == "packaged" else name for name in checks)
