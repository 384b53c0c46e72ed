"""Long sequences: on disk they are what they would be in memory, item by item, slice by slice."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycl.errors import DataError
from raycl.files import home
from raycl.tasks import stored
from raycl.tasks.rows import Row
from raycl.tasks.stored import Joined, Picked, Stored, held, keep
from raycl.train.batches import Encoded


def rows(count: int) -> list[Row]:
    """Rows with every kind of field."""
    return [
        Row(f"zażółć {i}\u2028", (f"a{i}", "b"), "d" * (i % 3), i / 4, (("system", f"s{i}"),) * (i % 2))
        for i in range(count)
    ]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three records are many."""
    monkeypatch.setattr(stored, "IN_MEMORY", 3)
    monkeypatch.setattr(stored, "AT_ONCE", 4)
    monkeypatch.setattr(stored, "LOOKS", 5)


def test_few_stay_in_memory_and_many_do_not(few: None) -> None:
    assert keep(iter(rows(3)), Row) == tuple(rows(3))
    many = keep(iter(rows(10)), Row)
    assert isinstance(many, Stored)
    assert list(many) == rows(10) == [many[place] for place in range(10)]
    assert many[-1] == rows(10)[-1]
    assert list(many[2:9:3]) == rows(10)[2:9:3]
    with pytest.raises(IndexError):
        many[10]


def test_token_ids_are_kept_too(few: None) -> None:
    encoded = [Encoded((i, i + 1), (7,) * i, i, 0.5, i % 2 == 0, (0, i) if i % 2 else None) for i in range(6)]
    assert list(keep(encoded, Encoded)) == encoded


def test_the_same_records_are_one_file_and_a_passing_one_goes(few: None) -> None:
    first, second = keep(rows(9), Row), keep(rows(9), Row)
    assert isinstance(first, Stored) and isinstance(second, Stored)
    assert first.path == second.path and first.path.parent == home() / "data"
    passing = keep(rows(9), Row, lasting=False)
    assert isinstance(passing, Stored)
    path = passing.path
    assert path.is_file() and list(passing) == rows(9)
    del passing
    gc.collect()
    assert not path.exists() and first.path.is_file()


def test_a_file_that_is_not_there_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    gone = Stored(tmp_path / "gone.arrow", Row, 5)
    for look in (lambda: gone[0], lambda: next(iter(gone))):
        with pytest.raises(DataError, match="RAYCL_HOME"):
            look()


@dataclass(frozen=True)
class Upper:
    """Makes a text of place and record."""

    def __call__(self, place: int, record: str) -> str:
        return f"{place}{record.upper()}"


@given(st.lists(st.text("abc", max_size=2), max_size=8), st.data())
def test_picked_and_joined_are_lists(texts: list[str], data: st.DataObject) -> None:
    """Length, items, slices and iteration of any choice."""
    places = data.draw(st.lists(st.sampled_from(range(len(texts))), max_size=6)) if texts else []
    wanted = [f"{place}{texts[place].upper()}" for place in places]
    picked = Picked(texts, places, Upper())
    joined = Joined(texts, picked)
    for found, expected in ((picked, wanted), (joined, texts + wanted)):
        assert len(found) == len(expected)
        assert list(found) == expected == [found[place] for place in range(len(expected))]
        cut = data.draw(st.slices(len(expected))) if expected else slice(None)
        assert list(found[cut]) == expected[cut]
        assert held(found) == tuple(expected)
