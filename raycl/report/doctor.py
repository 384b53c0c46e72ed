"""What a look at a machine found, a line for each check."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from raycl.doctor.finding import Finding
from raycl.files import Json

NAME, OUTCOME = 15, 8
"""Columns of a check's name and of its outcome."""
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def print_findings(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Show each finding when it is there, with its fix below it, and a last line over all; all of them."""
    seen = []
    for one in findings:
        seen.append(one)
        line = Text(f"{one.check:<{NAME}} ")
        line.append(f"{one.outcome:<{OUTCOME}}", style=STYLES[one.outcome])
        console.print(line.append(f" {one.found}"), soft_wrap=True)
        if one.fix:
            console.print(Text(f"{'':<{NAME}} {'fix':<{OUTCOME}} {one.fix}", style="bold"), soft_wrap=True)
    console.print(Text(verdict(seen), style="bold"))
    return seen


def verdict(findings: Iterable[Finding]) -> str:
    """All findings in one line."""
    outcomes = [one.outcome for one in findings]
    failed, warnings = outcomes.count("failed"), outcomes.count("warning")
    words = "a run would start" if not failed else f"{failed} to mend before a run"
    return words + (f"; {warnings} {'warning' if warnings == 1 else 'warnings'}" if warnings else "")


def as_json(findings: Iterable[Finding]) -> Json:
    """The same for programs: `ok`, and each finding with its fields."""
    seen = list(findings)
    return {"ok": not any(one.outcome == "failed" for one in seen), "findings": [vars(one) for one in seen]}
