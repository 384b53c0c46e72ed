"""Defaults, limits and choices of every method's hyper-parameters: what users' files and stored stages rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raycl.methods.registry import METHODS, method_params
from tests.kit.places import ROOT

LISTED = json.loads((ROOT / "tests" / "fixtures" / "method-fields.json").read_text())
"""Method -> field -> its JSON schema without titles and descriptions.

Who changes a default, a limit or a choice on purpose changes it here too, and says in CHANGELOG.md whose stages are trained
anew.
"""


def schema(value: Any) -> Any:
    """A JSON schema without what only people read."""
    if isinstance(value, list):
        return [schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: schema(one) for name, one in value.items() if name not in ("title", "description")}


@pytest.mark.parametrize("method", METHODS)
def test_fields_are_those_that_are_listed(method: str) -> None:
    """Each with its default, its limits and its choices; the defaults are a valid whole, the method's name among them."""
    model = method_params(method)
    assert schema(model.model_json_schema())["properties"] == LISTED[method]
    assert model() == model.model_validate({"name": method})


def test_every_method_is_listed() -> None:
    """And no other."""
    assert LISTED.keys() == METHODS.keys()
