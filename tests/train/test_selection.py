"""The loss on held-out rows: a token mean over all workers, without dropout and without gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from raycl.train.batches import Encoded
from raycl.train.passes import TokenMean
from raycl.train.selection import Best
from raycl.train.workers import Workers

ROWS = [Encoded((index,), tuple([1] * (index % 3 + 1))) for index in range(7)]
"""Row i has a loss of i in all and 1 to 3 answer tokens."""


class Summed(nn.Module):
    """A module whose loss of a batch is the sum of its prompts, and wrong in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
        self.scale = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []

    def collate(self, rows: list[Encoded], device: str) -> list[int]:
        self.sizes.append(len(rows))
        return [row.prompt[0] for row in rows]

    def forward(self, prompts: list[int]) -> tuple[torch.Tensor]:
        assert not torch.is_grad_enabled()
        return (self.scale * (1000.0 if self.training else float(sum(prompts))),)


class Twin(Workers):
    """One of two workers, whose partner has the same numbers; notes them."""

    def sum(self, tensors: Any) -> None:
        for tensor in tensors:
            noted.append(tensor.tolist())
            tensor.mul_(2)


noted: list[Any] = []


def loss_of(rows: list[Encoded], batch_size: int, workers: Workers | None = None) -> tuple[float, Summed]:
    """The loss, and the module that was asked; it was in training mode."""
    module: Any = Summed().train()
    return TokenMean(module, module, batch_size, workers or Workers()).cross_entropy(rows), module


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (99, [7]), (1, [1] * 7)])
def test_the_token_mean_whatever_the_batches(batch_size: int, sizes: list[int]) -> None:
    """0 + 1 + ... + 6 = 21 over 1 + 2 + 3 + 1 + 2 + 3 + 1 = 13 tokens."""
    loss, module = loss_of(ROWS, batch_size)
    assert loss == pytest.approx(21 / 13) and module.sizes == sizes


def test_workers_share_rows_and_sum_losses_and_tokens() -> None:
    """Worker 1 of 2 has rows 1, 3, 5: 9 over 2 + 1 + 3 tokens."""
    noted.clear()
    loss, _ = loss_of(ROWS, 2, Twin(1, 2))
    assert noted == [[9.0, 6.0]] and loss == pytest.approx(9 / 6)


def test_nothing_held_out_is_no_division_by_zero() -> None:
    """A worker without rows adds nothing; without any at all the loss is 0."""
    assert loss_of([], 2)[0] == 0.0


def test_what_is_kept_does_not_train_on() -> None:
    """The values are copies, free of the graph, and each parameter gets its own back."""
    weights = [nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0, 3.0]))]
    best = Best(weights)
    best.offer(1.0)
    for weight in weights:
        weight.data.zero_()
    assert [value.tolist() for value in best.values] == [[1.0], [2.0, 3.0]]
    assert not any(value.requires_grad for value in best.values)
    best.offer(1.0)
    best.restore()
    assert [weight.tolist() for weight in weights] == [[1.0], [2.0, 3.0]]
