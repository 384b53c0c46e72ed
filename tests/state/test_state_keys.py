"""One value, one byte string, one key: whatever the dict order, and never for two values."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.errors import StoreError
from raycl.state.keys import canonical_json, content_key, require_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
RECIPE = st.dictionaries(TEXT, VALUE, min_size=1, max_size=5)


def reordered(value: Any) -> Any:
    """The same value with every dict in the opposite order."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all leaves, empty containers among them."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for name, item in items for leaf in leaves(item, (*path, name))]
    return [path]


@given(RECIPE)
def test_key_ignores_dict_order_and_survives_json(recipe: dict[str, Any]) -> None:
    assert content_key(reordered(recipe)) == content_key(recipe)
    assert content_key(json.loads(canonical_json(recipe))) == content_key(recipe)


@settings(max_examples=300)
@given(RECIPE, LEAF, st.data())
def test_key_differs_for_any_changed_leaf(recipe: dict[str, Any], new: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(leaves(recipe)))
    changed = copy.deepcopy(recipe)
    place = changed
    for name in path[:-1]:
        place = place[name]
    old, place[path[-1]] = place[path[-1]], new
    assert (content_key(changed) == content_key(recipe)) == (repr(old) == repr(new))


def test_canonical_form_is_pinned() -> None:
    value = {"b": [1, 1.0, 1e-05, 0.1 + 0.2, True, None], "a": "é\n", "B": {}}
    assert canonical_json(value) == '{"B":{},"a":"é\\n","b":[1,1.0,1e-05,0.30000000000000004,true,null]}'.encode()
    assert content_key({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "\ud800", {"\ud800": 1}])
def test_values_without_json_form_are_refused_with_their_place(value: Any) -> None:
    with pytest.raises(ValueError, match=r"value\['x'\]\[1\]"):
        canonical_json({"x": [0, value]})


@pytest.mark.parametrize("value", [(1, 2), {1, 2}, b"x", {1: 2}, {None: 1}, object(), 1j])
def test_other_types_are_refused_not_converted(value: Any) -> None:
    with pytest.raises(TypeError, match=r"value\['x'\]"):
        canonical_json({"x": value})


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested too deeply"):
        canonical_json(loop)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", None, 7])
def test_only_a_key_is_a_key(key: Any) -> None:
    with pytest.raises(StoreError, match="not a content key"):
        require_key(key)
