"""The draw: balance, repeatability, independence."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from raycl.tasks.sampling import draw, draw_per_class

CLASSES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


@given(classes=CLASSES, count=st.integers(1, 70), seed=st.text(max_size=5))
def test_a_draw_is_distinct_of_the_right_size_and_as_balanced_as_can_be(
    classes: list[str], count: int, seed: str
) -> None:
    chosen = draw(classes, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(classes))
    assert chosen == draw(classes, count, seed)
    drawn, there = Counter(classes[index] for index in chosen), Counter(classes)
    most = max(drawn.values())
    for label, available in there.items():
        assert drawn[label] >= min(available, most - 1)


@given(classes=CLASSES, counts=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_a_smaller_draw_is_part_of_a_larger_one(classes: list[str], counts: tuple[int, int]) -> None:
    small, large = sorted(counts)
    assert set(draw(classes, small, "s")) <= set(draw(classes, large, "s"))


def test_all_items_keep_their_order() -> None:
    assert draw("abab", None, "s") == [0, 1, 2, 3]
    assert draw("abab", 4, "s") == [0, 1, 2, 3]


def test_the_seed_matters() -> None:
    assert draw("ab" * 50, 20, "1") != draw("ab" * 50, 20, "2")


def test_this_draw_never_changes() -> None:
    """Stage keys hold fingerprints of drawn examples: another draw would orphan every stored stage."""
    assert draw("aabbbbcc", 5, "42:sst2:train") == [7, 2, 4, 0, 1]


def test_per_class() -> None:
    chosen = draw_per_class("aaaabbc", 2, "s")
    assert Counter("aaaabbc"[index] for index in chosen) == {"a": 2, "b": 2, "c": 1}
