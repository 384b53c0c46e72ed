"""`make audit`: known vulnerabilities of the locked dependencies, by pip-audit, but for those that were looked at.

`audit.json` holds what was found and why it can stay: `{"findings": [{"id": ..., "package": ..., "reason": ...}]}`. All
else, a package that could not be looked up included, ends the command with code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
KNOWN = ROOT / "audit.json"
PIP_AUDIT = "pip-audit==2.10.1"


class Finding(TypedDict):
    """A vulnerability that was looked at."""

    id: str
    """As the advisory is called: GHSA-..., PYSEC-..., CVE-..."""
    package: str
    reason: str
    """Why it does not concern raycl, or what is done about it."""


def findings(path: Path = KNOWN) -> list[Finding]:
    """What was found and can stay. Raises ValueError for an entry without a reason."""
    found: list[Finding] = json.loads(path.read_text(encoding="utf-8"))["findings"]
    for one in found:
        if not all(str(one.get(name, "")).strip() for name in ("id", "package", "reason")):
            raise ValueError(f"{path.name}: {one}: an entry needs `id`, `package` and `reason`")
    return found


def command(known: list[Finding], uv: str = "uv") -> list[str]:
    """The command line: pip-audit in an environment of its own, strict about what it cannot look up."""
    flags = ["--strict", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--requirement", str(LOCK)]
    ignored = [part for one in known for part in ("--ignore-vuln", one["id"])]
    return [uv, "tool", "run", "--from", PIP_AUDIT, "pip-audit", *flags, *ignored]


def main() -> None:
    """Run it and end with its exit code."""
    uv = str(Path(sys.executable).parent / "uv")
    code = subprocess.run(command(findings(), uv), cwd=ROOT, check=False).returncode
    if code:
        print(
            "audit: not clean, or not all packages could be looked up (which needs a connection to the package index). "
            "Raise the version "
            "in pyproject.toml and `make lock`, or add the finding with its reason to audit.json",
            file=sys.stderr,
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
