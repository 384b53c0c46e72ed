"""benchmarks/performance.py: cells are measured once in each version, and the page says what was met and what not run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kit.measured import by_process
from tests.kit.scripts import script

performance, cells, runs, steps, evaluation, papers, sweeps = (
    script(name if name == "performance" else f"performance_{name}")
    for name in ("performance", "cell", "runs", "steps", "evaluation", "papers", "sweeps")
)


class Counted:
    """A measurement that gives 1.0 the first time, and one more each further time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> object:
        self.calls += 1
        return cells.Figure(float(self.calls), "bf16", 1, {"note": "by hand"})


def cell(name: str, measure: object, limit: float = 1.5, side: str = "most", version: int = 1) -> object:
    """A row about nothing."""
    return cells.Cell(name, f"row {name}", cells.Bar(limit, " s", side), measure, version)


def test_bars_are_met_from_their_side() -> None:
    """At most, at least, and both at the limit itself."""
    most, least = cells.Bar(1.03, " x floor"), cells.Bar(2.0, "x", "least")
    assert [most.met(value) for value in (1.0, 1.03, 1.04)] == [True, True, False]
    assert [least.met(value) for value in (1.9, 2.0, 3.0)] == [False, True, True]
    assert (str(most), str(least)) == ("≤ 1.03 x floor", "≥ 2x")


def test_a_figure_is_kept_in_a_file_of_its_name_until_the_version_moves(tmp_path: Path) -> None:
    """With value, details and what it was measured on."""
    measure = Counted()
    one = cell("a-b", measure)
    assert performance.stored(tmp_path, one) is None
    performance.measured(tmp_path, one)
    record = json.loads((tmp_path / "performance" / "a-b.json").read_text())
    assert performance.stored(tmp_path, one) == record
    assert (record["value"], record["details"]["note"], record["version"]) == (1.0, "by hand", 1)
    held = record["conditions"]
    assert (held["threads"], held["precision"]) == (1, "bf16") and held["hardware"] and len(held["load"]) == 2
    assert performance.stored(tmp_path, cell("a-b", measure, version=2)) is None


def test_the_middle_one_of_several_processes_counts() -> None:
    """Each measures once, in a process of its own; the figure names them all."""
    figure = cells.in_processes(by_process, 2)
    values = figure.details["values"]
    assert len(set(values)) == 2 and os.getpid() not in values and values == sorted(values)
    assert figure.value == values[1] and figure.details["note"].startswith("by hand; the middle of 2 processes: ")


def test_the_page_says_what_was_met_and_what_was_not_run(tmp_path: Path) -> None:
    """A row for every cell, in their order."""
    rows = {"a": cell("a", Counted()), "b": cell("b", Counted(), limit=0.5), "c": cell("c", Counted())}
    for name in "ab":
        performance.measured(tmp_path, rows[name])
    lines = [line for line in performance.page(tmp_path, rows).splitlines() if line.startswith("| row ")][1:]
    assert [line.split(" | ")[0] for line in lines] == ["| row a", "| row b", "| row c"]
    assert "| 1.000 s | ≤ 1.5 s | yes |" in lines[0] and "by hand" in lines[0]
    assert "| 1.000 s | ≤ 0.5 s | **no** |" in lines[1]
    assert "| not run | ≤ 1.5 s |" in lines[2]


def test_rows_that_are_short_say_why(tmp_path: Path) -> None:
    """Under the longest beginning of their name, those with one reason together; others say nothing."""
    names = {"a-1": 0.5, "a-2": 1.5, "a-3": 0.5, "b-1": 0.5, "b-2": 0.5}
    rows = {name: cell(name, Counted(), limit) for name, limit in names.items()} | {"a-4": cell("a-4", Counted(), 0.5)}
    for name in names:
        performance.measured(tmp_path, rows[name])
    page = performance.page(tmp_path, rows, {"a": "Slow.", "b": "Slower.", "b-2": "Slow."})
    _, short = page.split("## What is short, and why\n\n")
    assert short.splitlines() == ["- *row a-1; row a-3; row b-2*: Slow.", "- *row b-1*: Slower."]
    assert "*row a-1*: Not profiled yet." in performance.page(tmp_path, {"a-1": rows["a-1"]}, {})
    assert "short" not in performance.page(tmp_path, {"a-2": rows["a-2"]}, {})


def test_every_reason_is_of_a_row() -> None:
    """A row that is renamed takes its reason along."""
    reasons = script("performance_reasons").REASONS
    assert [start for start in reasons if not any(name.startswith(start) for name in performance.CELLS)] == []


def test_what_is_there_is_not_measured_again_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name stands for all that begin with it; one that none begins with is refused."""
    counts = {name: Counted() for name in ("x-1", "x-2", "y")}
    monkeypatch.setattr(performance, "CELLS", {name: cell(name, counts[name]) for name in counts})
    monkeypatch.setattr(performance, "RESULTS", tmp_path)

    def say(*words: str) -> list[int]:
        monkeypatch.setattr("sys.argv", ["performance.py", *words])
        performance.main()
        return [one.calls for one in counts.values()]

    assert say("--only", "x") == [1, 1, 0]
    assert say() == [1, 1, 1] == say()
    assert say("--again", "x-2") == [1, 2, 1]
    assert "row x-2 | 2.000 s" in (tmp_path / "performance.md").read_text()
    with pytest.raises(SystemExit, match="'z'"):
        say("--only", "z")


def test_rows_have_names_of_their_own_and_figures_that_are_kept_have_a_row() -> None:
    """A file beside the page that no row names would be in nobody's way, and in nobody's page."""
    sources = (steps.STEP_CELLS, runs.RUN_CELLS, evaluation.EVALUATION_CELLS, papers.PAPERS_CELLS, sweeps.SWEEP_CELLS)
    assert len(performance.CELLS) == sum(map(len, sources))
    kept = {path.stem for path in (performance.RESULTS / "performance").glob("*.json")}
    assert kept <= performance.CELLS.keys()


@pytest.mark.slow
def test_the_store_of_fifteen_stages_and_the_found_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow model: all is found by the second command, and the store holds more than the tensors alone."""
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    words = [*runs.write_fifteen(tmp_path, width=64, layers=1), "--tracking", "off"]
    monkeypatch.setattr(runs, "write_fifteen", lambda folder: words)
    figure = runs.stored_bytes(tmp_path)
    assert figure.value > 1 and figure.details["held"] / figure.details["added"] == figure.value
    assert runs.run(words, until="15 in the store") > 0
    with pytest.raises(ValueError, match="no such line"):
        runs.run(words, until="no such line")
