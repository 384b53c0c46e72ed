"""Why rows of benchmarks/performance.py are short of their bars, as profiles show it; its page has it of those that are."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: dict[str, str] = {}
"""What the names of rows begin with -> why. The longest beginning counts."""


def reason(name: str, reasons: Mapping[str, str]) -> str:
    """Why a row is short; that nobody knows yet, where nothing says so."""
    found = [start for start in reasons if name.startswith(start)]
    return reasons[max(found, key=len)] if found else "Not profiled yet."
