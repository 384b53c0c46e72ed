"""Which tests belong together on one process, and which ones repeat a proof on further cases."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.cases import CASES

FIRST_CASES = {case.params["name"]: name for name, case in reversed(CASES.items())}
"""Method -> the first of its cases."""
RAY = ("test_ray", "test_head_node", "test_sweep", "test_compare")
"""Files whose slow tests start Ray."""


LONG_GROUPS = ("ray", "pair", "tests/reproduction/test_reproduce.py", "tests/sequence/test_real.py")
"""Where the minutes are, longest first: a long group that starts last leaves the other processes idle."""


THOROUGH = ("test_workers.py", "test_leaks", "test_state_crashes", "test_every_method_runs", "test_smoke_of_one_table")
"""Rooms other than methods: data-parallel workers, killed processes, whole sequences of every method."""


def group_of(item: pytest.Item) -> str:
    """The name of a test's group: its file; among the tests of methods also the model family and the case.

    So whatever fixtures of a file or a case cost, a trained sequence above all, is paid on one process only. Tests that
    start Ray are one group: two clusters on one small machine would starve each other.
    """
    file = item.nodeid.partition("::")[0]
    if item.get_closest_marker("slow") and any(name in file for name in RAY):
        return "ray"
    values = params_of(item)
    if "methods" in file and "case" in values:
        return f"methods {values.get('family')} {case_name(values)}"
    if "pair" in getattr(item, "fixturenames", ()):
        return "pair"
    return file if "methods" not in file or "family" not in values else f"{file} {values['family']}"


def is_repetition(item: pytest.Item) -> bool:
    """Whether a test proves for one more case what another proves for the first: of a method's cases, and of families.

    `make test-fast` leaves these out, and what draws examples at random.
    """
    values = params_of(item)
    if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
        return True
    if "methods" not in item.nodeid:
        return any(name in item.nodeid for name in THOROUGH)
    name = case_name(values)
    return (
        values.get("family") == "t5"
        or "pair" in getattr(item, "fixturenames", ())
        or (name in CASES and name not in FIRST_CASES.values())
    )


def case_name(values: dict[str, Any]) -> str | None:
    """The name of the case among a test's parameters."""
    value = values.get("case", values.get("name"))
    return value if isinstance(value, str) else None


def params_of(item: pytest.Item) -> dict[str, Any]:
    """A test's parameters."""
    return getattr(getattr(item, "callspec", None), "params", {})
