"""The data passes that a method declares are those that it then asks for, with what it says they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.state.stage_state import StageState
from raycl.testing.tiny import load_tiny
from tests.kit.cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_declared_passes_are_those_asked_for(tiny_folders: dict[str, Path], name: str) -> None:
    """At the first stage, where every case has what it needs."""
    params = method_params(CASES[name].params["name"]).model_validate(CASES[name].params)
    method = build(params, StageInfo(1, 2, "toy", 0))
    method.install(load_tiny(tiny_folders["llama"], "fp32").backbone, StageState())
    asked = {}
    for when in ("before", "after"):
        if method.collect(when) is not None:
            asked[when] = method.observes
    assert method_class(params.name).passes(params) == asked
