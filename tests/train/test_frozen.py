"""What a stage does not train stays as it is, or the stage fails and names it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.train.frozen import Frozen, checksum


def one_branch() -> StageState:
    """A state after one stage with a branch on the module `q`."""
    branch = Branch(1, 1.0, {"q": torch.ones(1, 3)}, {"q": torch.ones(2, 1)})
    return StageState((StagePart("first", branch),))


def test_what_is_no_earlier_branch_may_change():
    """Base weights and what trains."""
    model, state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), one_branch()
    frozen = Frozen(model, state)
    model[1].weight.data.add_(1)
    frozen.require_unchanged()


@pytest.mark.parametrize(("side", "word"), [("a", "A"), ("b", "B")])
def test_a_changed_branch_of_an_earlier_stage_is_named(side: str, word: str):
    state = one_branch()
    frozen = Frozen(nn.Linear(3, 2), state)
    getattr(state.parts[0].pair, side)["q"].zero_()
    with pytest.raises(RuntimeError, match=f"{word} of q of stage 1"):
        frozen.require_unchanged()


def test_a_changed_stack_of_frozen_branches_is_named():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_buffer("frozen_b", torch.ones(2, 1), persistent=False)
    frozen = Frozen(model, StageState())
    model[0].frozen_b[0, 0] = 2
    with pytest.raises(RuntimeError, match=r"0\.frozen_b"):
        frozen.require_unchanged()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_every_type_has_a_sum_that_knows_one_changed_number(dtype: torch.dtype):
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    changed = torch.tensor([0, 1, 1, 1, 1]).to(dtype)
    assert checksum(tensor) == checksum(tensor.clone()) != checksum(changed)


def test_the_sum_is_that_of_the_bits():
    """1.0 in fp32 is 0x3F800000; minus zero, whose value is that of zero, is -2^31."""
    assert checksum(torch.tensor([1.0, 1.0])) == 2 * 0x3F800000
    assert checksum(torch.tensor([-0.0])) == -(2**31)


def test_a_tensor_without_numbers_has_a_sum():
    assert checksum(torch.empty(0, 3)) == 0
