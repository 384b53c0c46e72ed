"""Trained sequences that many tests look at, run once per session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from raycl.testing.case import Case
from raycl.testing.matrix import SETTINGS
from raycl.testing.probes import probe_logits
from tests.kit.cases import CASES
from tests.kit.gates import EXACT

STAGES = 3


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Every method."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def toy_tasks(toy_task: Callable[..., Any]) -> list[Any]:
    """Three tasks on words of their own, four distinct prompts of uneven length each."""
    return [toy_task(number, spread=3) for number in (1, 2, 3)]


@pytest.fixture(scope="session")
def trained(tiny: Any, toy_tasks: list[Any], run_sequence: Callable[..., Any], case: Case) -> list[Any]:
    """The three stages of a method on a tiny model, in memory; probes are logits on the first task's test split."""
    return run_sequence(tiny, case.params, toy_tasks, probe=probe_logits(tiny, toy_tasks[0].test))


def with_settings(run: Callable[..., Any]) -> Callable[..., Any]:
    """A runner that trains with the settings of the method's cases."""
    settings = {case.params["name"]: case.train for case in CASES.values()}

    def runner(model: Any, method: Any, tasks: Any, *state: Any, **train: Any) -> Any:
        name = method["name"] if isinstance(method, dict) else method.params.name
        return run(model, method, tasks, *state, **SETTINGS | settings[name] | train)

    return runner


@pytest.fixture(scope="session")
def run_stage(run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """The runner of one stage, with the method's toy settings."""
    return with_settings(run_stage)


@pytest.fixture(scope="session")
def run_sequence(run_sequence: Callable[..., Any]) -> Callable[..., Any]:
    """The runner of a sequence, with the method's toy settings."""
    return with_settings(run_sequence)


@pytest.fixture(autouse=True)
def clean_backbone(request: pytest.FixtureRequest) -> Any:
    """No test may leave adapters on a model that others use."""
    yield
    for name in ("tiny", "tiny_bf16"):
        if name in request.fixturenames:
            modules = dict(request.getfixturevalue(name).backbone.model.named_modules())
            left = [path for path in modules if "lora" in path]
            assert not left, f"adapters left on {name}: {left}"


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Seed torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["o_lora", "inf_lora"])
def over(request):
    """What GainLoRA stands on."""
    return request.param


@pytest.fixture(scope="module")
def first(tiny, toy_tasks, run_stage):
    """The first stage of GainLoRA over O-LoRA with exact subspaces, in fp32."""
    return run_stage(tiny, EXACT, toy_tasks)
