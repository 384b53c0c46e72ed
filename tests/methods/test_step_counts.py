"""What a training step of each method costs, counted: nothing of it grows with the number of branches.

No times: counts of matrix products, of passes of the base model, of what is kept for the way back and of waits for a number
say the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycl.methods.registry import method_params
from raycl.spec import Beside
from raycl.testing.tiny import load_tiny
from tests.kit.cases import CASES
from tests.kit.step_counts import StageCount, StepCount, count_stages, counting

AFTER = (2, 4, 6)
"""Stages with 1, 3 and 5 earlier branches."""
WIDEST = 64
"""The widest layer of the tiny models."""
MODULES = {"llama": 4, "t5": 12}
"""Adapted modules."""
GATE_PRODUCTS = 3
"""Of each earlier gate: its two levels and its key, of one pooled row for each example."""
WAITS = {"llama": 3, "t5": 2}
"""In one pass: transformers looks twice whether its masks hide anything; and the width of a decoder-only batch's answers."""
ALWAYS = {"tree_lora": 1, "tree_lora_gradient": 1, "l2p_diverse": 1, "self_distill": 16, "self_distill_data": 4}
"""What a method adds at every stage: steps of a tree's stage so far, and whether any prompt was picked before; how wide the
demonstrations are, and three masks of answers; to draw three tokens ids, what is prompt, how many, and three masks each."""
MORE_WAITS = {"tree_lora": 4, "tree_lora_gradient": 4, "sapt_lora": 3}
"""What it adds from the second stage on: the branches of its tree that it compares with, and rows by their task."""
SOME = ("sin_lora", "inc_lora", "gain_lora_over_inf", "lwf", "prog_prompt", "migu_over_sin", "sapt_lora", "am_lora_ar")
"""On T5 one of each kind."""
GROWS = ("gem", "gem_average")
"""What passes over rows of earlier tasks one more time, as many as a batch has; `test_gem.py` counts that."""
PAIRS = [*(("llama", name) for name in CASES if name not in GROWS), *(("t5", name) for name in SOME)]
Counted = dict[int, StageCount]


@pytest.fixture(scope="module", name="counted")
def _counted(tiny_folders: dict[str, Path], family: str, name: str) -> Iterator[Counted]:
    """The counts of the stages of a case, by stage."""
    yield count_stages(load_tiny(tiny_folders[family], "fp32"), CASES[name].params, max(AFTER))


ANSWER = 3
"""Tokens of the longest answer."""


def again(name: str, stage: int) -> int:
    """Passes of the base model in a step: those that estimates count."""
    beside = method_params(CASES[name].params["name"]).model_validate(CASES[name].params).beside(stage, ANSWER)
    return 1 + len(beside.read) + len(beside.trained)


def test_passes_beside_the_plain_one_by_hand() -> None:
    """LwF's teacher from stage 2 on; the teacher that is shown the answers reads twice as much, and there may be three
    tokens drawn, and the student that read them. Without their weights there is none."""

    def beside(name: str, stage: int, **fields: Any) -> Beside:
        return method_params(name).model_validate({"name": name, **fields}).beside(stage, ANSWER)

    assert (beside("lwf", 1), beside("lwf", 2)) == (Beside(), Beside(read=(1.0,)))
    assert beside("lwf", 2, weight=0.0) == beside("self_distill", 1, weight=0.0) == Beside()
    assert beside("self_distill", 1, samples="data") == Beside(read=(2.0,))
    assert beside("self_distill", 1) == Beside(read=(1.0, 1.0, 1.0, 2.0), trained=(1.0,))
    assert beside("self_distill", 1, max_tokens=2) == Beside(read=(1.0, 1.0, 2.0), trained=(1.0,))


def waits(family: str, name: str, stage: int) -> int:
    """The most times that the host waits in a step that logs nothing."""
    own = ALWAYS.get(name, 0) + (MORE_WAITS.get(name, 0) if stage > 1 else 0)
    if name == "lwf" and stage > 1:
        own = 3  # it picks the answers' tokens by a mask
    if name.startswith("migu") and stage > 1:  # of each module that trains, real tokens are picked by a mask
        own = 15 if name == "migu_over_seq_ft" else 2 * MODULES[family]
    return WAITS[family] * again(name, stage) + own


@pytest.mark.parametrize(("family", "name"), PAIRS, scope="module")
def test_branches_add_no_products(counted: Counted, family: str, name: str) -> None:
    """Earlier branches are one stack: two products more than none, forward and back, whether it holds one or five."""
    first = counted[AFTER[0]].step.products
    for stage in AFTER:
        gates = GATE_PRODUCTS * (stage - AFTER[0]) if name.startswith("gain_lora") else 0
        assert 0 < counted[stage].step.products <= first + gates
    if CASES[name].frozen_branches and CASES[name].branch:
        assert counted[1].step.products < first


@pytest.mark.parametrize(("family", "name"), PAIRS, scope="module")
def test_a_step_is_one_pass_of_the_base(counted: Counted, family: str, name: str) -> None:
    """And what a stage passes beside its training does not grow, but where a method has the model write for each task."""
    for stage, count in counted.items():
        assert count.step.passes == again(name, stage)
    beside = [counted[stage].passes for stage in AFTER]
    if name == "lfpt5":
        assert beside == [beside[0] * (stage - 1) for stage in AFTER]
    else:
        assert len(set(beside)) == 1


@pytest.mark.parametrize(("family", "name"), PAIRS, scope="module")
def test_branches_keep_no_more_for_the_way_back(counted: Counted, family: str, name: str) -> None:
    """As many tensors over all tokens, none wider than the model's widest: never a feature for each branch."""
    first = counted[AFTER[0]].step
    for stage in AFTER:
        step = counted[stage].step
        assert len(step.kept) <= len(first.kept) and step.widest <= WIDEST
    if CASES[name].branch or CASES[name].trains == "W":
        assert len(first.kept) >= 2 * MODULES[family] and first.widest == WIDEST


@pytest.mark.parametrize(("family", "name"), PAIRS, scope="module")
def test_the_host_waits_for_no_more_than_it_must(counted: Counted, family: str, name: str) -> None:
    """In a step that is not logged; never for each branch."""
    for stage in (1, *AFTER):
        assert counted[stage].step.waits <= waits(family, name, stage)


def test_what_is_counted() -> None:
    """A module that treats its branches one by one shows in every count."""

    class OneByOne(nn.Module):
        def __init__(self, branches: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 6, bias=False) for _ in range(branches))

        def forward(self, x: Any) -> Any:
            parts = [layer(x).tanh() for layer in self.layers]
            shares = [float(part.detach().sum()) for part in parts]
            return torch.stack([part.square() for part in parts]).sum() + sum(shares)

    found = {}
    for branches in (1, 3):
        count, x = StepCount(), torch.ones(2, 5, 4)
        with counting(count, rows=2, tokens=5):
            OneByOne(branches)(x).backward()
        found[branches] = (count.products, count.waits, len(count.kept), count.widest)
    # forward and the weight's gradient; what tanh and square keep is one tensor, and x
    assert found == {1: (2, 1, 2, 6), 3: (6, 3, 4, 6)}
    count = StepCount()
    with counting(count, rows=2, tokens=5):
        torch.ones(3)[torch.tensor([True, False, True])].tolist()
    assert (count.products, count.waits) == (0, 2)
