"""GainLoRA with exact subspaces, and what tests look at in its gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raycl.testing.probes import batch_of
from tests.kit.cases import HIDDEN, SHAPE

EXACT: dict[str, Any] = SHAPE | {
    "name": "gain_lora",
    "gate_hidden": [HIDDEN],
    "gate_epsilon": 1.0,
    "epsilon": 0.95,
    "dropout": 0.0,
}
ZERO = 1e-5
"""Round-off of fp32 in a gate whose score is exactly 0."""


def gates_and_features(model: Any, tasks: list[Any]) -> Callable[..., list[dict[str, Any]]]:
    """A probe: per task, the gate values (examples, branches) and each gate's features p_0..p_L on its test inputs."""

    def probe(module: Any, encoder: Any) -> list[dict[str, Any]]:
        seen = []
        for task in tasks:
            inputs = batch_of(model, task.test)
            module.method.condition(inputs)
            p0 = module.method.pooled(inputs)
            features = [gate.features(p0) for gate in module.method.gates]
            scores = [f[-1] @ gate.key().T for f, gate in zip(features, module.method.gates, strict=True)]
            seen.append({"a": module.method.weights.clone(), "features": features, "scores": scores})
        return seen

    return probe
