"""One branch for each row: the groups of a batch, and what is added where."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.chosen import NONE, Chosen, grouped


def test_the_groups_of_a_batch():
    """All rows of one branch need no indices; rows without a branch are in no group."""
    assert grouped(torch.tensor([2, 2, 2])) == [(2, None)]
    assert grouped(torch.tensor([NONE, NONE])) == []
    mixed = grouped(torch.tensor([1, NONE, 0, 1]))
    assert [(index, rows.tolist()) for index, rows in mixed] == [(0, [2]), (1, [0, 3])]


@pytest.mark.parametrize("choice", [[0, 0], [0, 1], [1, NONE], [NONE, NONE]])
def test_each_row_gets_its_own_branch_by_hand(choice):
    """B A x s: branch 0 doubles the sum of x (1 x 1 x s = 2), branch 1 takes ten times its first entry."""
    one = torch.ones(1, 1)
    pairs = [(torch.tensor([[1.0, 1.0]]), one, 2.0), (torch.tensor([[1.0, 0.0]]), 5 * one, 2.0)]
    x = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 4.0], [1.0, 0.0]]])
    by_branch = {0: [[[6.0], [2.0]], [[14.0], [2.0]]], 1: [[[10.0], [0.0]], [[30.0], [10.0]]]}
    added = Chosen(pairs, lambda: grouped(torch.tensor(choice)))(x)
    wanted = [by_branch[index][row] if index != NONE else [[0.0], [0.0]] for row, index in enumerate(choice)]
    assert (torch.zeros(2, 2, 1) if added is None else added).tolist() == wanted
    assert (added is None) == (choice == [NONE, NONE])
