"""Instructions whose following can be checked."""

from __future__ import annotations

import pytest

from raycl.use.instructions import INSTRUCTIONS, share_followed

GOOD = [
    "Yes.",
    "7",
    "golden honey",
    "Rain falls on the old roof all night.",
    "The sea is wide and blue and it moves all day and all night under wind and moon and ships and birds.",
    "red, green, blue",
    "1 2 3 4 5",
    "River river river river",
    "GARDEN",
    "it is paris.",
    "Certainly, it is water with land around it.",
    "It is many trees. END",
    "Will it rain today?",
    '"Rome"',
    "- apple\n- pear",
    '{"city": "Madrid"}',
]
"""An answer to each that does as it was told."""
BAD = [
    "It is.",
    "seven",
    "They make honey",
    "Rain is water that falls out of the clouds.",
    "The sea is blue.",
    "red, green, blue, pink",
    "1, 2, 3, 4, 5",
    "river river river",
    "Garden",
    "Paris",
    "It is certainly water.",
    "It is the END of the road",
    "Is it? It is.",
    "Rome",
    "apple\npear",
    '{"city": "Madrid", "land": "Spain"}',
]
"""One that does not, but for a detail."""


@pytest.mark.parametrize("place", range(len(INSTRUCTIONS)))
def test_each_tells_the_one_from_the_other(place: int) -> None:
    """Space around an answer does not count."""
    one = INSTRUCTIONS[place]
    assert one.followed(GOOD[place]) and one.followed(f"  {GOOD[place]}\n")
    assert not one.followed(BAD[place]) and not one.followed("")


def test_the_share_is_a_percentage() -> None:
    """All, none, and a quarter."""
    assert share_followed(GOOD) == 100.0 and share_followed(BAD) == 0.0
    assert share_followed([*GOOD[:4], *BAD[4:]]) == 25.0


def test_no_text_breaks_a_check() -> None:
    """Whatever a model writes."""
    for text in ("[" * 10_000, "\x00", "null", "{}", "🙂" * 50):
        assert all(one.followed(text) in (True, False) for one in INSTRUCTIONS)
