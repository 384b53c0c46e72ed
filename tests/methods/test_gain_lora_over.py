"""GainLoRA and the methods it stands on: what each of the two protections does, and the settings of the releases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raycl.adapters.branches import kaiming
from raycl.adapters.stacked_lora import StackedLora
from raycl.methods.common.base import StageInfo
from raycl.methods.gain_lora import GainLora, GainLoraParams
from raycl.methods.inf_lora import BASIS, stored_basis
from raycl.state.stage_state import StageState
from raycl.testing.probes import largest_difference, make_method, probe_logits
from tests.kit.cases import CASES, SHAPE
from tests.kit.gates import EXACT, ZERO

# GainLoRA and what it stands on.


class Open(GainLora):
    """All gates forced to 1."""

    def condition(self, inputs):
        super().condition(inputs)
        self.weights = torch.ones_like(self.weights)


class NewOpen(GainLora):
    """The new gate forced to 1, the old ones as they are."""

    def condition(self, inputs):
        super().condition(inputs)
        self.weights = torch.cat([self.weights[:, :-1], torch.ones_like(self.weights[:, -1:])], dim=1)


class FreeA(GainLora):
    """The designed down-projection replaced by a random one that old inputs do excite."""

    def initialise(self, moments):
        super().initialise(moments)
        draw = self.info.generator("free")
        self.inner.branches.set_a({path: kaiming(m.down.shape, draw) for path, m in self.inner.branches.layers.items()})


class FreeOpen(NewOpen, FreeA):
    """Neither protection."""


def build(kind: type[GainLora], params: dict[str, Any], stage: int) -> GainLora:
    """A variant for one stage of the toy sequence."""
    return kind(GainLoraParams.model_validate(params), StageInfo(stage, 3, f"toy{stage}", 0))


def test_with_open_gates_it_is_the_method_it_stands_on(
    tiny, toy_tasks, run_stage, run_sequence, over, monkeypatch: pytest.MonkeyPatch
):
    """Gates forced to 1 train bit for bit the branches of O-LoRA or InfLoRA, and InfLoRA's bases, over three tasks.

    A plain sum is stacked here as what gates weigh is: folded into the base it is the same but for round-off.
    """
    monkeypatch.setattr(StackedLora, "folds", property(lambda layer: False))
    shared = {"lambda1": 0.1, "lambda2": 0.01, "epsilon": 0.9}
    kept = ("lambda1", "lambda2") if over == "o_lora" else ("epsilon",)
    plain = run_sequence(tiny, SHAPE | {"name": over} | {name: shared[name] for name in kept}, toy_tasks)
    state = StageState()
    for stage, underlying in enumerate(plain, start=1):
        method = build(Open, EXACT | SHAPE | shared | {"over": over}, stage)
        part = run_stage(tiny, method, toy_tasks, state).part
        state = state.append(part)
        for path, a in underlying.part.branch.a.items():
            assert torch.equal(part.branch.a[path], a)
            assert torch.equal(part.branch.b[path], underlying.part.branch.b[path])
        bases = {name: value for name, value in part.tensors.items() if name.startswith(BASIS)}
        assert bases.keys() == underlying.part.tensors.keys()
        assert all(torch.equal(value, underlying.part.tensors[name]) for name, value in bases.items())


def test_either_protection_alone_keeps_old_outputs(tiny, toy_task, run_stage):
    """Over InfLoRA old logits stay when only the gate, or only the down-projection, guards them; with neither they move."""
    tasks = [toy_task(number, distinct=2, repeats=4, words=2) for number in (1, 2, 3)]
    params = EXACT | {"over": "inf_lora", "epsilon": 1.0}
    probe = probe_logits(tiny, tasks[0].test)
    first = run_stage(tiny, params, tasks, probe=probe)
    scale = max(row.abs().max().item() for row in first.probes[1])
    drift = {}
    for kind in (GainLora, NewOpen, FreeA, FreeOpen):
        result = run_stage(tiny, build(kind, params, 2), tasks, first.state, epochs=8, probe=probe)
        drift[kind] = largest_difference(result.probes[1], first.probes[1]) / scale
        overlap = max(
            (a.double() @ stored_basis(first.state, BASIS + path, 48)).abs().max().item()
            for path, a in result.part.branch.a.items()
        )
        assert overlap > 0.01 if issubclass(kind, FreeA) else overlap <= ZERO
    assert drift[GainLora] <= 1e-4
    assert drift[NewOpen] <= 1e-4
    assert drift[FreeA] <= 1e-4
    assert drift[FreeOpen] > 1e-2


def test_detach_old_changes_training_and_nothing_else(tiny, toy_tasks, run_sequence, run_stage):
    """The flag changes the second stage's gradients, not the forward pass; served states ignore it."""
    params = CASES["gain_lora_over_o"].params | {"dropout": 0.0}
    probe = probe_logits(tiny, toy_tasks[1].test)
    results = [
        run_sequence(tiny, params | {"detach_old": flag}, toy_tasks[:2], epochs=1, probe=probe)
        for flag in (False, True)
    ]
    assert largest_difference(results[0][1].probes[0], results[1][1].probes[0]) == 0
    assert results[0][1].log[0]["loss"] == results[1][1].log[0]["loss"]
    assert largest_difference(results[0][1].probes[1], results[1][1].probes[1]) > 1e-4
    method = make_method(params | {"detach_old": True}, 2)
    method.serve(tiny.backbone, results[1][1].state)
    assert not any(layer.detach_old for layer in method.inner.branches.layers.values())
    method.remove()
