"""The leaderboard: figures by hand, failed cells, bounds, and what is written where."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raycl.analysis.leaderboard import CellResult, make_leaderboard, measured
from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.views import SequenceView, StageView
from raycl.report.comparison import (
    COLUMNS,
    ComparisonTerminal,
    borrowed_tables,
    latex,
    leaderboard_rows,
    markdown,
    write_comparison,
)

TASKS = ["a", "b"]


def cell(label: str, seed: int, own: float, last: float, **more: object) -> CellResult:
    """A sequence of two tasks: both learned to `own`, the first then at `last`."""
    matrix = AccuracyMatrix(TASKS)
    matrix.cells = np.array([[10.0, 20.0], [own, 30.0], [last, own]])
    stages = [StageView(n, task, "k", [], {}, {"train": 60.0}, 1000 * n, 500_000) for n, task in enumerate(TASKS, 1)]
    view = SequenceView(f"{label} {seed}", label, "demo", seed, {}, matrix, stages)
    given = {"method": label, "bound": False, "error": None} | more
    return CellResult(label=label, order="demo", seed=seed, view=view, **given)


def many(good: float, bad: float, seeds: int = 8) -> list[CellResult]:
    """Two methods with a gap, the upper bound, and one failed sequence of a third method."""
    cells = []
    for seed in range(seeds):
        cells.append(cell("o_lora", seed, good + seed / 10, good - 4 + seed / 7))
        cells.append(cell("sin_lora", seed, bad + seed / 9, bad - 20 + seed / 3))
        cells.append(cell("per_task", seed, good + 5 + seed / 8, good + 5 + seed / 8, bound=True))
    return [*cells, cell("lwf_x", 0, 1.0, 1.0, error="out of memory")]


def test_figures_by_hand() -> None:
    """AP, FT, BWT, FWT from the matrix; intransigence against per_task of the same pair; cost from the stages."""
    cells = many(80.0, 50.0)
    found = measured(cells[0], cells)
    assert found == pytest.approx({"AP": 78.0, "FT": 4.0, "BWT": -4.0, "FWT": 10.0, "IM": 5.0})
    board = make_leaderboard(cells)
    line = next(line for line in board.lines if line.label == "o_lora")
    aps = [(160 - 4 + s / 10 + s / 7) / 2 for s in range(8)]
    assert line.measures["AP"].mean == pytest.approx(np.mean(aps))
    assert line.measures["AP"].sd == pytest.approx(np.std(aps, ddof=1))
    assert (line.minutes.mean, line.trainable, line.megabytes.mean, line.n) == (2.0, 2000, 1.0, 8)


def test_lines_stand_by_ap_with_bounds_below_and_failures_last() -> None:
    """Bounds are no competitors: neither sorted among the methods nor tested."""
    board = make_leaderboard(many(80.0, 50.0))
    assert [line.label for line in board.lines] == ["o_lora", "sin_lora", "lwf_x", "per_task"]
    assert {(test.first, test.second) for test in board.tests} == {
        ("o_lora", "sin_lora"),
        ("o_lora", "lwf_x"),
        ("sin_lora", "lwf_x"),
    }
    assert (board.lines[2].n, board.lines[2].failed) == (0, 1)


def test_a_claim_is_made_only_where_it_holds() -> None:
    """A wide gap over eight pairs is claimed; over four, or where it is small, the words say why not."""
    board = make_leaderboard(many(80.0, 50.0))
    assert board.lines[0].above == ("sin_lora",)
    assert board.words[0].startswith("o_lora is above sin_lora: +3")
    assert "n too small: 0 common (order, seed) pairs" in board.words[1]
    few = make_leaderboard([one for one in many(80.0, 50.0, 4) if one.label != "lwf_x"])
    assert few.words[0] == "No ranking is claimed: the order of the lines may be chance."
    assert "n too small" in few.words[1]
    assert not any(line.above for line in few.lines)
    assert make_leaderboard([cell("o_lora", 0, 1.0, 1.0)]).words == ["One method: nothing to rank."]


def test_without_per_task_there_is_no_intransigence() -> None:
    """And a joint method has no row before the last."""
    alone = cell("o_lora", 0, 80.0, 70.0)
    assert math.isnan(measured(alone, [alone])["IM"])


def test_every_form_holds_the_same_lines(tmp_path: Path) -> None:
    """CSV with numbers, Markdown, LaTeX with escapes and a rule before the bounds, JSON without NaN, the terminal."""
    cells = many(80.0, 50.0)
    board = make_leaderboard(cells)
    paths = write_comparison(tmp_path / "out", board, cells, {"schema": 1}, [])
    assert set(paths) == {"leaderboard.csv", "leaderboard.md", "leaderboard.tex", "cells.csv", "compare.json"}
    rows = list(csv.DictReader(io.StringIO(paths["leaderboard.csv"].read_text())))
    assert [row["method"] for row in rows] == [line.label for line in board.lines]
    assert float(rows[0]["AP_mean"]) == pytest.approx(board.lines[0].measures["AP"].mean)
    assert rows[2]["AP_mean"] == ""
    sequences = list(csv.DictReader(io.StringIO(paths["cells.csv"].read_text())))
    assert len(sequences) == 25
    assert (sequences[-1]["status"], sequences[-1]["error"]) == ("failed", "out of memory")
    record = json.loads(paths["compare.json"].read_text(), parse_constant=pytest.fail)
    assert record["leaderboard"]["lines"][2]["measures"]["AP"]["mean"] is None
    text = paths["leaderboard.tex"].read_text()
    assert r"o\_lora & 8 &" in text
    assert r"$\pm$" in text
    assert text.index(r"lwf\_x") < text.rindex(r"\midrule") < text.index(r"per\_task")
    page = paths["leaderboard.md"].read_text()
    assert "## Failed sequences\n\n- lwf_x, demo, seed 0: out of memory" in page
    assert "Borrowed" not in page
    assert list(leaderboard_rows(board)[0]) == list(COLUMNS)


def test_the_terminal_says_the_same() -> None:
    """Table, claims, failures; brackets in labels are no markup."""
    stream = io.StringIO()
    cells = [*many(80.0, 50.0), *(cell("g:gate=[8]", s, 60.0, 60.0) for s in range(2))]
    terminal = ComparisonTerminal(Console(file=stream, width=200))
    terminal.leaderboard(make_leaderboard(cells))
    terminal.failures(cells)
    shown = stream.getvalue()
    assert "g:gate=[8]" in shown
    assert "per_task (bound)" in shown
    assert "o_lora is above sin_lora" in shown
    assert "1 of 27 sequences failed:" in shown


def test_a_narrow_window_gets_whole_words() -> None:
    """At 80 characters the columns come in pieces, every method named in each, and no cell is broken or cut."""
    stream = io.StringIO()
    cells = [*many(80.0, 50.0), *(cell("gain_lora:over=inf_lora", s, 60.0, 60.0) for s in range(2))]
    ComparisonTerminal(Console(file=stream, width=80)).leaderboard(make_leaderboard(cells))
    table = stream.getvalue().split("Leaderboard by AP")[1].split("\n", 1)[1].split(" is above ")[0]
    pieces = table.count("gain_lora:over=inf_lora ")
    assert pieces > 1
    assert table.count("per_task (bound) ") == pieces
    assert max(map(len, table.splitlines())) <= 80
    for column in COLUMNS[1:]:
        assert column in table
    for row in leaderboard_rows(make_leaderboard(cells)):
        assert all(text in table for text in row.values())


def test_borrowed_figures_are_marked_and_never_mixed() -> None:
    """They stand under their own heading, and no column of the leaderboard holds one."""
    cells = many(80.0, 50.0)
    board = make_leaderboard(cells)
    tables = borrowed_tables(["o_lora", "sin_lora"])
    assert tables
    page = markdown(board, cells, tables)
    before, after = page.split("## Borrowed figures")
    assert "arXiv" not in before
    assert "Not made by raycl" in after
    assert "AM-LoRA (arXiv 2409.19611), table 1" in after
    assert "am_lora" not in after.replace("AM-LoRA", "")
    assert latex(board) == latex(board)


def test_a_label_is_text_in_markdown() -> None:
    """In the table, in the claims and among what failed."""
    cells = [cell("<b>x</b>", seed, 80.0 + seed, 70.0) for seed in range(8)]
    cells += [cell("o_lora", seed, 20.0 + seed, 10.0) for seed in range(8)]
    text = markdown(make_leaderboard(cells), [*cells, cell("<i>", 0, 1.0, 1.0, error="<u>")], [])
    assert "&lt;b&gt;x&lt;/b&gt;" in text and "&lt;i&gt;" in text and "&lt;u&gt;" in text
    assert not re.search(r"<[a-z/]", text)
