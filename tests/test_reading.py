"""Reading within bounds: what is small is read, what becomes large is refused with the limit's name."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raycl.errors import SetupError
from raycl.reading import (
    DEPTH,
    MIB,
    RATIO,
    TEXT,
    YAML,
    TooLarge,
    limit_of,
    parse_yaml,
    read_text,
    unpack,
    unpacked_limit,
)

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A kilobyte that stands for a thousand million values."""


def test_a_zero_bomb_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip file of zeros: what is held at most is a few times the limit."""
    monkeypatch.setenv(TEXT[0], "2")
    bomb = gzip.compress(bytes(200 * MIB))
    tracemalloc.start()
    with pytest.raises(TooLarge, match=r"larger than 2 MiB.*RAYCL_READ_LIMIT"):
        unpack(bomb)
    assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    tracemalloc.stop()


def test_the_limit_is_the_environment_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused under one limit is read under a larger one; an odd limit is said."""
    path = tmp_path / "t"
    path.write_text("x" * (MIB + 1))
    monkeypatch.setenv(TEXT[0], "1")
    with pytest.raises(TooLarge, match="larger than 1 MiB"):
        read_text(path)
    monkeypatch.setenv(TEXT[0], "2")
    assert len(read_text(path)) == MIB + 1
    for odd in ("many", "-1", "0", "1.5", "9" * 30):
        monkeypatch.setenv(TEXT[0], odd)
        with pytest.raises(SetupError, match=TEXT[0]):
            limit_of(TEXT)


def test_what_a_packed_file_may_hold_grows_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files up to the limit of texts, large ones in proportion."""
    monkeypatch.setenv(TEXT[0], "1")
    assert unpacked_limit(10) == MIB
    assert unpacked_limit(MIB) == RATIO * MIB


def test_aliases_count_as_often_as_they_repeat() -> None:
    """A few lines that would be a thousand million values."""
    with pytest.raises(ValueError, match="aliases counted"):
        parse_yaml(LAUGHS)
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: 2}") == {
        "a": {"b": 1}, "c": [{"b": 1}] * 2, "d": {"b": 1, "e": 2},
    }  # fmt: skip


def test_nesting_is_bounded() -> None:
    """As deep as the bound, not deeper."""
    assert parse_yaml("[" * DEPTH + "]" * DEPTH) is not None
    with pytest.raises(ValueError, match=f"nested more than {DEPTH}"):
        parse_yaml("[" * (DEPTH + 1) + "]" * (DEPTH + 1))


def test_yaml_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it nothing is parsed."""
    with pytest.raises(TooLarge, match=r"larger than 1 MiB.*RAYCL_YAML_LIMIT"):
        parse_yaml("x" * (MIB + 1))
    monkeypatch.setenv(YAML[0], "2")
    assert parse_yaml("x" * (MIB + 1))


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "&a [*a]", "&a {b: *a}", "a: 1\na: 2", "[1]: 2",
     "? {a: 1}", "1" * 5000, "2001-99-99", "\x00", "*x", "a: !!int x", "[a", "!x y", "%YAML 9.9\n---\n1"],
)  # fmt: skip
def test_what_is_no_plain_value_is_a_value_error(text: str) -> None:
    """Tags, loops, repeated keys, odd scalars: in words, and nothing is run."""
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_yaml(text)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("abx01 :-,&*?|>{}[]'\"!%\n\t#<~.\\\x85\ud800é"), max_size=60))
@example("a: =")
def test_any_text_is_a_plain_value_or_a_value_error(text: str) -> None:
    """And it is what YAML's safe loader says."""
    try:
        found = parse_yaml(text)
    except ValueError:
        return
    assert repr(found) == repr(yaml.safe_load(text))
