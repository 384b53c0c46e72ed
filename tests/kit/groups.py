"""Which tests belong together on one process of pytest-xdist, and which ones repeat a proof on further cases.

Groups are read off a test's id alone, since that is all the process that hands out tests knows. (pytest-xdist's own
`loadgroup` does nothing under pytest 9.2: its issue 1386.)
"""

from __future__ import annotations

from typing import Any

import pytest

from raycl.testing.tiny import FAMILIES
from tests.kit.cases import CASES

RAY = (
    *("test_ray.py", "test_chaos.py", "test_head_node.py", "test_sweep.py", "test_own_methods_page.py"),
    "test_three_nodes.py",
    "::test_a_pool_of_processes_survives_a_death",
)
"""Tests that start Ray: two clusters on one small machine would starve each other."""
COMMANDS = (
    "sequence/test_sequence.py",
    "test_leaks.py",
    "test_long.py",
    "sequence/test_workers.py",
    "test_real.py",
    "test_frames.py",
    "test_crash_points.py",
    "test_no_compiler.py",
)
"""Tests whose commands are forked from one server, which takes seconds to start."""
PAIR = "::test_two_workers_do_what_one_does["
"""Tests of methods that share a pair of processes."""
LONG_GROUPS = ("ray", "commands", "tests/reproduction/test_reproduce.py", "pair", "tests/comparison/test_compare.py")
"""Where the minutes are, longest first: a long group that starts last leaves the other processes idle."""
FIRST_CASES = {case.params["name"]: name for name, case in reversed(CASES.items())}
"""Method -> the first of its cases."""
THOROUGH = (
    *("test_workers.py", "test_leaks", "test_state_crashes", "test_every_method_runs", "sweep/test_driver.py"),
    *("reproduction/test_reproduce.py::test_smoke", "-o_lora]", "-am_lora]", "comparison/test_compare.py"),
    *("test_frames.py", "::test_paper_scale_goes_through_the_driver", "::test_two_processes_may_make_one_database"),
    *("::test_what_deepspeed_says", "::test_a_rerun_from_a_cold_start", "::test_bytes_are_the_same_in_any_process"),
    *("::test_what_is_loaded_answers_as_it_was_scored", "::test_what_is_no_adapter_is_not"),
    "::test_what_is_served_answers_as_it_was_scored",
    *("::test_two_drivers_of", "::test_a_refused_command_in_a_process", "::test_two_orders_of_routed_branches"),
    *("report/test_html.py::test_hostile", "::test_a_tree_over_five_tasks", "test_other_families.py"),
)
"""Rooms other than methods: data-parallel workers, killed processes, whole sequences of every method, processes started
anew, and what else takes seconds; of other families' models all but the method that looks at most of them."""


COSTLY = (
    PAIR,
    "::test_the_loss_falls_on_a_learnable_task[",
    "::test_the_seed_decides_everything[",
    "::test_the_base_model_is_there_with_every_method_on_it[",
)
"""Tests of every case that take a second and more."""


def group_of(nodeid: str) -> str:
    """The name of a test's group: its file; among the tests of methods also the model family and the case.

    So whatever the fixtures of a file or a case cost, a trained sequence above all, is paid on one process only.
    """
    file, _, rest = nodeid.partition("::")
    if any(name in nodeid for name in RAY):
        return "ray"
    if file.endswith(COMMANDS):
        return "commands"
    if "/methods/" not in file:
        return file
    if file.endswith("test_workers_and_resume.py") and PAIR in nodeid:
        return "pair"
    values = rest.partition("[")[2].removesuffix("]").split("-")
    case = next((value for value in values if value in CASES), file)
    family = next((value for value in values if value in ("llama", "t5")), "")
    return f"methods {family} {case}"


def is_repetition(item: pytest.Item) -> bool:
    """Whether a test proves for one more case what another proves for the first: of a method's cases, and of families.

    `make test-fast` leaves these out, and what draws examples at random.
    """
    if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
        return True
    group = group_of(item.nodeid)
    if not group.startswith(("methods", "pair")):
        return any(name in item.nodeid for name in THOROUGH)
    values = params_of(item)
    name = values.get("case", values.get("name"))
    further = name in CASES and name not in FIRST_CASES.values()
    return group == "pair" or values.get("family") == "t5" or further


def is_other_pair(item: pytest.Item) -> bool:
    """Whether a costly test proves for a case on one model family what it proves on the other one: each case has its turn on
    one of them, the first case of a method on a decoder-only model. `--every-pair` runs all."""
    values = params_of(item)
    name, family = values.get("case", values.get("name")), values.get("family")
    if name not in CASES or family not in FAMILIES or not any(one in item.nodeid for one in COSTLY):
        return False
    place = 0 if name in FIRST_CASES.values() else 1 + list(CASES).index(name)
    return family != FAMILIES[place % 2]


def params_of(item: pytest.Item) -> dict[str, Any]:
    """A test's parameters; of fixtures that are chosen by name, the name."""
    found = getattr(getattr(item, "callspec", None), "params", {})
    return {name: value for name, value in found.items() if isinstance(value, str)}
