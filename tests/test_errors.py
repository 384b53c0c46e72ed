"""Messages: printable, short, with the nearest word."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.errors import (
    LONGEST_WORD,
    QUOTED,
    DataError,
    UserError,
    did_you_mean,
    is_name,
    machine_problem,
    printable,
    shown,
    some,
)


def test_a_value_is_quoted_up_to_a_length() -> None:
    """200 characters, the last ones dots where something is left out."""
    assert shown("abc") == "'abc'"
    assert len(shown("x" * 100_000)) == QUOTED == 200
    assert shown("x" * 100_000).endswith("...")
    assert shown("a\u202eb\n") == "'a\\u202eb\\n'"


@settings(max_examples=200, derandomize=True)
@given(st.text())
def test_every_message_is_printable(text: str) -> None:
    """Whatever is put into one; a second time changes nothing."""
    said = str(DataError(text))
    assert all(one == "\n" or one.isprintable() for one in said)
    assert str(UserError(said)) == said


def test_words_without_an_end_lose_their_middle() -> None:
    """Both ends stay."""
    said = printable("a " + "x" * 10_000 + "END b")
    assert len(said) < LONGEST_WORD + 20
    assert said.startswith("a x") and said.endswith("END b") and "..." in said
    assert printable("y" * LONGEST_WORD) == "y" * LONGEST_WORD


def test_the_nearest_word_is_named() -> None:
    """Where there is one."""
    assert did_you_mean("batchsize", ["batch_size", "lr"]) == " (did you mean 'batch_size'?)"
    assert did_you_mean("zzz", ["batch_size", "lr"]) == ""


def test_many_names_are_counted() -> None:
    """The first five, then how many there are more."""
    assert some("abc") == "a, b, c"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a\nb",
        "a\tb",
        "a/b",
        "a\\b",
        "\u202ea",
        "a\u200bb",
        "a\ufeff",
        "\u3164",
        "a\u00adb",
        "x" * 61,
        "\ud800",
    ],
)
def test_what_is_no_name(name: str) -> None:
    """Empty, too long, with slashes, line ends, or characters without a shape."""
    assert not is_name(name, 60)


@pytest.mark.parametrize("name", ["a", "gain lora", "gain_lora:over=x", "Übung 3", "日本語", "x" * 60, "<b>"])
def test_what_is_a_name(name: str) -> None:
    """Plain printable text of any script."""
    assert is_name(name, 60)


def test_the_machine_s_refusals_have_a_next_step() -> None:
    """A full disk and a closed door are the user's to mend; a missing file may be a defect."""
    said = machine_problem(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert said == "/data/x: No space left on device; next step: free some space, then run the same command again"
    assert "who may read" in (machine_problem(PermissionError(errno.EACCES, "Permission denied", "/data/x")) or "")
    assert machine_problem(FileNotFoundError(errno.ENOENT, "No such file", "/x")) is None
    assert machine_problem(OSError("odd")) is None
