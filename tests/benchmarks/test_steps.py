"""benchmarks/steps.py and made_up.py: twins share weights and nothing else, and calls are timed in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from raycl.adapters.branches import LoraShape
from raycl.state.stage_state import StageState
from tests.kit.scripts import script

if TYPE_CHECKING:
    from raycl.models.load import LoadedModel

steps, made_up = script("steps"), script("made_up")
SMALL = steps.Sizes(2, 6, 3)


def test_twins_share_weights_and_carry_methods_of_their_own(tiny: LoadedModel) -> None:
    """One twin trains, and neither the other nor the base model shows it."""
    one, other = steps.twin(tiny.backbone), steps.twin(tiny.backbone)
    method = steps.method_of("sin_lora", rank=4)
    step = steps.TrainingStep(one, method, StageState(), steps.batch(tiny.backbone, SMALL))
    base = dict(tiny.backbone.model.named_parameters())
    assert {name: one.data_ptr() for name, one in other.model.named_parameters()} == {
        name: one.data_ptr() for name, one in base.items()
    }
    adapted = {name for name, _ in one.model.named_parameters() if ".lora_" in name}
    assert len(adapted) == len(step.engine.parameters) > 0
    before = step.loss().item()
    for _ in range(30):
        step()
    assert step.loss().item() < before
    assert not any("lora" in name for name, _ in other.model.named_parameters()) and len(base) == len(
        list(tiny.backbone.model.parameters())
    )


def test_the_batch_is_what_a_stage_trains_on(tiny: LoadedModel) -> None:
    """Prompts of all the tokens; answers behind them, or as labels of an encoder-decoder; without answers none."""
    inputs = steps.batch(tiny.backbone, SMALL)
    assert inputs.prompt_mask.sum(dim=1).tolist() == [6, 6]
    assert (inputs.labels != -100).sum().item() == 6
    assert inputs.ids.shape == ((2, 6) if tiny.backbone.encoder_decoder else (2, 9))
    bare = steps.batch(tiny.backbone, SMALL, answers=False)
    assert bare.labels is None and bare.ids.shape == (2, 6)


def test_every_round_has_every_call_and_begins_with_another() -> None:
    """Two rounds of two calls after one that does not count."""
    called: list[str] = []
    seconds = steps.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert called == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_what_slows_a_whole_round_down_is_not_in_the_ratio() -> None:
    """Rounds of 1.5 to 1, ten times slower in the second; the ratio of medians would be another one."""
    assert steps.ratio([1.5, 15.0, 3.0], [1.0, 10.0, 2.0]) == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["gain_lora", "am_lora", "o_lora", "inf_lora", "inc_lora", "slao"])
def test_a_method_trains_on_after_made_up_tasks(tiny: LoadedModel, name: str) -> None:
    """It takes the state as one of its own, at the stage after it, and its step is finite and moves what trains."""
    state = made_up.made_up_state(name, tiny.backbone, 4, 3)
    assert state.stage == 3 and state.newest.pair.rank == 4
    method = steps.method_of(name, 4, 4)
    step = steps.TrainingStep(steps.twin(tiny.backbone), method, state, steps.batch(tiny.backbone, SMALL))
    frozen = {layer.frozen_ranks for path, layer in _layers(step).items()}
    assert frozen == {() if name == "slao" else (4, 4, 4)}
    before = [one.detach().clone() for one in step.engine.parameters]
    step()
    after = step.engine.parameters
    assert all(bool(one.isfinite().all()) for one in after)
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_bases_of_made_up_gates_are_orthonormal_over_all_tasks(tiny: LoadedModel) -> None:
    """So that the new gate is as free as one whose features are half taken."""
    state = made_up.made_up_state("gain_lora", tiny.backbone, 4, 3)
    basis = torch.cat([part.tensors["gate_basis/0"] for part in state.parts], dim=1)
    assert basis.shape == (tiny.backbone.width, tiny.backbone.width // 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)


def test_made_up_branches_are_always_the_same(tiny: LoadedModel) -> None:
    """And of the shape that was asked for."""
    (one,), (two, _) = (made_up.made_up_branches(tiny.backbone, LoraShape(3, 6.0), count) for count in (1, 2))
    assert (one.rank, one.alpha) == (3, 6.0)
    assert all(torch.equal(one.a[path], two.a[path]) and one.a[path].shape[0] == 3 for path in one.a)


def _layers(step: object) -> dict[str, torch.nn.Module]:
    from raycl.adapters.stacked_lora import StackedLora

    model = step.module.model
    return {path: one for path, one in model.named_modules() if isinstance(one, StackedLora)}
