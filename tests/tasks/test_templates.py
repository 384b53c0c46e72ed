"""Templates: what they render, and that none can read or make more than the row allows."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycl.tasks.templates import LONGEST, check_template, render


def test_a_row_is_rendered() -> None:
    """Columns, none as nothing, loops over a list in the row, names with spaces, the last line end."""
    row = {"a": 1, "none": None, "list": ["x", "y"], "row": {"A b": "z"}}
    assert render("{{ a }}|{{ none }}|{% for one in list %}{{ one | upper }}{% endfor %}|{{ row['A b'] }}\n", row) == (
        "1||XY|z\n"
    )
    assert render("{{ list[0].strip() }}{% if missing is defined %}!{% endif %}", row) == "x"


def test_values_are_written_as_those_of_columns() -> None:
    """Whole numbers without a point and nothing for no number, as the same rows are read from CSV."""
    row = {"whole": 2.0, "part": 0.5, "gap": float("nan"), "yes": True, "self": "a column of any name"}
    assert render("{{ whole }}|{{ part }}|{{ gap }}|{{ yes }}", row) == "2|0.5||True"


@pytest.mark.parametrize(
    "text",
    [
        *("{{ a", "{% for %}", "{{ a | nofilter }}", "{{ a | tojson }}"),
        *(
            "{% include 'x' %}",
            "{% import 'x' as y %}",
            "{% extends 'x' %}",
            "{% set b = a %}",
            "{% with b = a ~ a %}{{ b }}{% endwith %}",
            "{% macro m() %}{% endmacro %}",
        ),
        *(
            "{{ range(3) }}",
            "{{ a.ljust(9) }}",
            "{{ a.format(1) }}",
            "{{ cycler(1) }}",
            "{{ a.__class__() }}",
            "{{ self }}",
        ),
    ],
)
def test_what_is_not_allowed_is_refused_before_it_runs(text: str) -> None:
    with pytest.raises(ValueError, match="the template"):
        check_template(text)


@pytest.mark.parametrize(
    "text", ["{{ a.__class__ }}", "{{ a * 9 }}", "{{ 2 ** 9 }}", "{{ '%09d' % 1 }}", "{{ gone }}", "{{ 1 / 0 }}"]
)
def test_what_fails_on_a_row_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        render(check_template(text), {"a": "x"})


def test_a_text_has_a_longest() -> None:
    with pytest.raises(ValueError, match="longer than"):
        render("{% for x in l %}{{ a }}{% endfor %}", {"l": [1] * 50, "a": "x" * (LONGEST // 49)})


@given(st.text(max_size=30), st.dictionaries(st.sampled_from(["a", "b"]), st.text() | st.none() | st.integers()))
def test_any_text_renders_or_is_a_value_error(text: str, row: dict[str, object]) -> None:
    with contextlib.suppress(ValueError):
        render(check_template(text), row)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in x %}{% for b in x %}{% if false %}y{% endif %}{% endfor %}{% endfor %}",
        "{% for a in x %}{{ x }}{% endfor %}",
        "{{ x | replace('a', x) }}",
        "{{ x | list | join(x) }}",
        "{{ x | list | map('replace', 'a', x) | join }}",
    ],
)
def test_what_grows_or_turns_without_end_is_refused(template: str) -> None:
    """Loops in loops that write nothing, too: a row of 20,000 characters makes thousands of millions of them."""
    with pytest.raises(ValueError, match="longer than 4,000,000"):
        render(check_template(template), {"x": "a" * 20_000})


def test_loops_and_filters_of_a_sensible_size_write_what_jinja_writes() -> None:
    """The count leaves no trace."""
    text = "{% for a in x %}{{ loop.index }}{{ a | replace('b', '-') }}{% else %}none{% endfor %} {{ x | join(', ') }}"
    assert render(check_template(text), {"x": ["ab", "c"]}) == "1a-2c ab, c"
    assert render(check_template(text), {"x": []}) == "none "
    assert render("{{ x | join(',', attribute='a') }}", {"x": [{"a": 1}, {"a": 2}]}) == "1,2"
