"""Tables of the matrix and the plan at many widths."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from raycl.analysis.matrix import AccuracyMatrix
from raycl.report.tables import in_markdown, matrix_markdown, matrix_tables, plan_table, short


def render(matrix: AccuracyMatrix, width: int) -> str:
    """The tables as plain text."""
    console = Console(file=io.StringIO(), width=width)
    for table in matrix_tables(matrix, width):
        console.print(table)
    return console.file.getvalue()


def test_four_tasks_in_one_table(four: AccuracyMatrix) -> None:
    lines = [line.rstrip() for line in render(four, 80).splitlines()]
    assert lines[0].split() == ["after", "stage", "1", "2", "3", "4", "AP"]
    assert lines[1].split() == ["0", "untrained", "30.0", "31.0", "32.0", "33.0", "-"]
    assert lines[2].split() == ["1", "dbpedia", "90.0", "41.0", "90.0"]
    assert lines[-1].split() == ["4", "agnews", "84.0", "84.0", "84.0", "84.0", "84.0"]


def test_without_forward_scores_there_is_no_row_of_the_untrained_model(four: AccuracyMatrix) -> None:
    four.cells[0] = float("nan")
    assert "untrained" not in render(four, 80)


@pytest.mark.parametrize("width", [30, 50, 80, 100, 140])
def test_no_score_is_cut_at_any_width(fifteen: AccuracyMatrix, width: int) -> None:
    text = render(fifteen, width)
    assert max(map(len, text.splitlines())) <= width
    shown = sum(len(re.findall(r"\b\d+\.\d\b", line)) for line in text.splitlines())
    cells = int((fifteen.cells == fifteen.cells).sum())
    assert shown == cells + len(fifteen.tasks)  # every cell, and AP after every stage


def test_markdown(four: AccuracyMatrix) -> None:
    lines = matrix_markdown(four).splitlines()
    assert lines[0] == "| after stage | dbpedia | amazon | yahoo | agnews | AP |"
    assert lines[3] == "| 1 dbpedia | 90.0 | *41.0* |  |  | 90.0 |"
    assert len({line.count("|") for line in lines}) == 1


def test_markdown_escapes_bars() -> None:
    assert matrix_markdown(AccuracyMatrix(["a|b"])).startswith("| after stage | a\\|b | AP |")


def test_markdown_holds_no_html_and_no_line_end_of_a_name() -> None:
    assert in_markdown("<img src=x onerror=alert(1)>\n# b & c") == "&lt;img src=x onerror=alert(1)&gt; # b &amp; c"
    assert "<script>" not in matrix_markdown(AccuracyMatrix(["<script>"]))


def test_plan_shows_key_state_and_counts(plan: list[dict]) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(plan_table(plan))
    first, second = (line.split() for line in console.file.getvalue().splitlines()[1:3])
    assert first == ["1", "dbpedia", "a0" * 6, "to", "run", "1,000", "100"]
    assert second == ["2", "amazon", "a1" * 6, "stored", "1,000", "100"]


def test_short() -> None:
    assert [short("abcdef", width) for width in (6, 3, 1)] == ["abcdef", "ab…", "a…"]
