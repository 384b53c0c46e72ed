"""benchmarks/step_time.py: the floor by hand, PEFT's LoRA as it is, memory that grows by what branches hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import peft
import pytest
import torch

from raycl.state.stage_state import StageState
from raycl.testing.tiny import load_tiny
from tests.kit.bare import bare
from tests.kit.scripts import SCRIPTS, script

if TYPE_CHECKING:
    from raycl.models.load import LoadedModel

steps, step_time, shapes, made_up = (script(name) for name in ("steps", "step_time", "shapes", "made_up"))
SMALL = steps.Sizes(2, 6, 3)


def test_the_floor_counts_every_linear_layer() -> None:
    """The tiny shape, two layers, 2 rows of 9 tokens: q 32x32, k and v 32x16, o 32x32, three of 32x48; the head of 200 words
    sees the last 4 positions. Rank 3 on q and v; frozen weights count twice, trained ones three times."""
    case = step_time.Case(shapes.random_backbone(shapes.tiny(2), "fp32", "cpu"), 3, SMALL)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    base = 2 * (2 * 18 * layer + 2 * 4 * 32 * 200)
    branch = 2 * 18 * 3 * (32 + 32 + 32 + 16)
    assert step_time.floor(case, 5) == pytest.approx((base + 13 * branch) / (base + 3 * branch))
    assert step_time.floor(case, 0) == 1.0


def test_an_encoder_decoder_counts_the_tokens_that_each_side_reads(tiny_folders: dict[str, Path]) -> None:
    """12 of the prompts, 6 of the answers; the keys and values of cross-attention read the prompts."""
    seen = step_time.tokens_of_linears(step_time.Case(load_tiny(tiny_folders["t5"], "fp32").backbone, 3, SMALL))
    assert seen["encoder.block.0.layer.0.SelfAttention.q"] == 12
    assert seen["decoder.block.0.layer.0.SelfAttention.q"] == 6
    assert (seen["decoder.block.0.layer.1.EncDecAttention.q"], seen["decoder.block.0.layer.1.EncDecAttention.v"]) == (
        6,
        12,
    )


def test_the_plain_lora_is_peft_s_own(tiny: LoadedModel) -> None:
    """Its layers are PEFT's, and with the same factors it has the loss of raycl's single LoRA."""
    case = step_time.Case(tiny.backbone, 4, SMALL)
    plain = case.one_lora()
    ours = steps.TrainingStep(steps.twin(tiny.backbone), steps.method_of("sin_lora", 4, 1), StageState(), case.inputs)
    layers = [one for one in plain.module.model.modules() if isinstance(one, peft.tuners.lora.Linear)]
    assert len(layers) == len(ours.engine.parameters) / 2 and len(plain.engine.parameters) == len(
        ours.engine.parameters
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one, two in zip(plain.engine.parameters, ours.engine.parameters, strict=True):
            one.copy_(0.3 * torch.randn(one.shape, generator=draw))
            two.copy_(one)
    bare_loss = steps.TrainingStep(steps.twin(tiny.backbone), case.peft(), StageState(), case.inputs)
    assert plain.loss().item() == pytest.approx(ours.loss().item(), rel=1e-5)
    assert abs(plain.loss().item() - bare_loss.loss().item()) > 1e-4


def test_methods_are_measured_beside_the_plain_lora(tiny: LoadedModel) -> None:
    """One figure for each, with its own floor: SLAO's one branch adds nothing."""
    case = step_time.Case(tiny.backbone, 4, SMALL, rounds=2)
    costs = step_time.step_costs(case, ["inc_lora", "slao"], 3)
    assert costs["inc_lora"].floor > 1 == costs["slao"].floor
    assert all(cost.seconds > 0 and cost.one_lora > 0 and cost.ratio > 0 for cost in costs.values())


def test_memory_grows_by_what_frozen_branches_hold(tiny: LoadedModel) -> None:
    """At least by their numbers, once; what a single branch holds is in both."""
    case = step_time.Case(tiny.backbone, 4, SMALL)
    own = step_time.own_bytes(made_up.made_up_state("inc_lora", tiny.backbone, 4, 3), torch.float32)
    sizes = [(one.down.numel() + one.up.numel()) for one in _adapted(case)]
    assert own == 3 * 4 * sum(sizes)
    first, later = (step_time.step_bytes(case, "inc_lora", count) for count in (0, 3))
    assert own <= later - first < 2 * own + 3 * first
    weights = sum(one.numel() * 4 for one in tiny.backbone.model.parameters())
    assert first > weights
    assert step_time.memory_ratio(case, "inc_lora", 3) == pytest.approx(later / (first + own), rel=1e-3)


def test_bytes_are_counted_once() -> None:
    """Views of one storage, and another tensor."""
    one = torch.zeros(10)
    assert step_time.held([one, one[:3], one.view(2, 5), torch.zeros(4, dtype=torch.bfloat16)]) == 48


@pytest.mark.slow
def test_it_runs_where_only_torch_transformers_and_peft_are_installed() -> None:
    """All methods on the tiny shape, and every figure in its place."""
    small = "--shape tiny --layers 1 --branches 1,2 --repeats 1 --rows 2 --tokens 8"
    words = f"{small} --device cpu --precision fp32 --threads 1".split()
    done = bare("step_time", words, PYTHONPATH=f"{SCRIPTS}:{SCRIPTS.parent}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines[2:14]]
    assert [(row[0], row[1]) for row in rows] == [(name, count) for count in "12" for name in step_time.METHODS]
    assert sum("memory at 15 branches" in line for line in lines) == len(step_time.METHODS)
    assert "penalty" in lines[-1]


def _adapted(case: object) -> list[object]:
    from raycl.adapters.stacked_lora import StackedLora

    return [one for one in case.step("inc_lora", 0).module.model.modules() if isinstance(one, StackedLora)]
