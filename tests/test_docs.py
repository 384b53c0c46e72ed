"""The documentation builds as a site, without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.places import ROOT


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A link to a page or heading that is not there, a page that no menu has, an unknown directive: all are errors."""
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", "docs/site", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    command_line = (tmp_path / "site" / "docs" / "reference" / "cli.html").read_text()
    assert "import-adapter" in command_line and "--max-forgetting" in command_line
    assert "train.engine" in (tmp_path / "site" / "docs" / "reference" / "fields.html").read_text()
