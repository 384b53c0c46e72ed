"""A sweep's leaderboard on terminals of any width."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from raycl.report.sweeps import COLUMNS, PAGE_COLUMNS, SweepTerminal, headings, page_rows
from raycl.report.terminal import LOG_WIDTH, standard_output

COUNTS = {"needed": 6, "distinct": 5, "stored": 0, "trained": 5, "shared": 1, "saved": 1}


def trial(number: int, status: str, **params: Any) -> dict[str, Any]:
    """One row of the leaderboard."""
    named = {f"method.{name}": value for name, value in params.items()}
    return {"rank": number, "trial": number, "AP": 50.0 - number, "FT": None, "done": 2, "stages": 3} | {
        "params": named,
        "status": status,
    }


ROWS = [
    trial(
        1,
        "finished",
        gate_hidden=[100, 100],
        gate_score="cosine",
        gate_squash="clipped_abs",
        gate_pooling="max",
        rank=8,
    ),
    trial(2, "stopped", gate_hidden=[], gate_score="dot", gate_squash="abs_tanh", gate_pooling="mean_tokens", rank=8),
]


def shown(width: int) -> list[str]:
    """The lines of the leaderboard."""
    stream = io.StringIO()
    SweepTerminal(Console(file=stream, width=width)).summary(ROWS, COUNTS, {"store": "here"})
    return stream.getvalue().split("Stage runs:")[0].splitlines()


def test_a_wide_terminal_shows_one_table() -> None:
    """Best first, the settings that differ, none that is the same in all trials."""
    head, *lines = [line for line in shown(LOG_WIDTH) if line]
    assert head.split()[:6] == ["place", "trial", "AP", "FT", "stages", "status"]
    assert "gate_pooling" in head
    assert not head.split().count("8")
    assert [line.split()[:6] for line in lines] == [
        ["1", "1", "49.0", "-", "2/3", "finished"],
        ["2", "2", "48.0", "-", "2/3", "stopped"],
    ]


def test_a_column_is_called_so_once() -> None:
    """A setting called like a column of the table keeps its whole name; `rank` is a setting, the other column is `place`."""
    assert headings(["method.rank", "method.trial", "train.lr", "seed"], COLUMNS) == {
        "method.rank": "rank",
        "method.trial": "method.trial",
        "train.lr": "train.lr",
        "seed": "seed",
    }


def test_the_page_keeps_place_and_rank_apart() -> None:
    rows = [trial(1, "finished", rank=8, done="x"), trial(2, "stopped", rank=4, done="y")]
    first, second = page_rows(rows)
    assert list(first) == [*PAGE_COLUMNS, "rank", "method.done"]
    assert [(row["place"], row["rank"], row["done"], row["method.done"]) for row in (first, second)] == [
        (1, "8", 2, "x"),
        (2, "4", 2, "y"),
    ]


def test_a_narrow_terminal_breaks_no_word() -> None:
    """The settings follow in further tables, each with place and trial."""
    lines = shown(60)
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith("place  trial") for line in lines) > 1
    text = "\n".join(lines)
    for word in ("gate_hidden", "[100, 100]", "clipped_abs", "mean_tokens", "stopped"):
        assert word in text


def test_a_log_is_as_wide_as_the_tables_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal its width is no limit, unless the user says so."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert standard_output().width == LOG_WIDTH
    monkeypatch.setenv("COLUMNS", "100")
    assert standard_output().width == 100


def test_a_failed_trial_says_what_is_wrong_and_not_only_how_much() -> None:
    """Of a message with a heading also what stands below it; of others their first line."""
    stream = io.StringIO()
    terminal = SweepTerminal(Console(file=stream, width=200))
    terminal.ended(3, "failed", "2 problems in the model m:\n  - the first\n  - the second\n")
    terminal.ended(4, "failed", "the loss is nan.\nLower train.lr.")
    terminal.ended(5, "finished", "")
    assert stream.getvalue().splitlines() == [
        "trial 3: failed: 2 problems in the model m: the first",
        "trial 4: failed: the loss is nan.",
        "trial 5: finished",
    ]
