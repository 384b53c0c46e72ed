"""Rows that stand twice: counted by where they stand, equal apart from nearly equal."""

from __future__ import annotations

from raycl.tasks.duplicates import Place, find_twins

TRAIN, TEST, OTHER = Place("a", "train"), Place("a", "test"), Place("b", "test")
LONG = "the quick brown fox jumps over the lazy dog and then goes home to sleep for a very long night in the old barn"


def test_equal_rows_by_pair_of_places() -> None:
    """Case, punctuation and spaces do not count; each row of the later place counts once."""
    texts = [(TRAIN, "One two."), (TRAIN, "one  two"), (TRAIN, "three"), (TEST, "ONE TWO"), (OTHER, "four")]
    found = {(one.one, one.other): (one.exact, one.near) for one in find_twins(texts)}
    assert found == {(TRAIN, TRAIN): (1, 0), (TRAIN, TEST): (1, 0)}


def test_nearly_equal_rows() -> None:
    """At least 0.8 of the runs of three words in common: 22 words have 20 runs, and another last word changes one."""
    other = LONG.replace("barn", "house")
    less = LONG.replace("fox", "cat").replace("home", "away").replace("old", "new")
    texts = [(TRAIN, LONG), (TEST, other), (OTHER, less)]
    found = {(one.one, one.other): (one.exact, one.near) for one in find_twins(texts)}
    assert found == {(TRAIN, TEST): (0, 1)}


def test_nothing_is_found_in_different_texts() -> None:
    assert find_twins([(TRAIN, f"text number {i} of {i * 7}") for i in range(200)]) == []
