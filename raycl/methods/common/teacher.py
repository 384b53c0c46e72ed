"""What a model is held to: the model itself as a teacher, as it was or without what trains, and how far it is from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def as_teacher(model: nn.Module) -> Iterator[None]:
    """The model without gradients and without dropout for a while; no draw of random numbers is used up."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def holding(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Some of the weights, by name, at other values of their shapes for a while; graphs made before keep their own."""
    own = {name: weights[name].data for name in values}
    for name, value in values.items():
        weights[name].data = value
    try:
        yield
    finally:
        for name, value in own.items():
            weights[name].data = value


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Sum over rows of KL(softmax(teacher / T) || softmax(student / T)), in fp32; (n, V) both; gradients reach `student`."""
    with torch.autocast(student.device.type, enabled=False):
        target = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
        now = F.log_softmax(student.float() / temperature, dim=-1)
        return F.kl_div(now, target, reduction="sum", log_target=True)


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) of each position: logits (..., V) -> (...), by log-softmax on both sides, in fp32 at least."""
    first, second = (F.log_softmax(widened(logits), dim=-1) for logits in (before, after))
    return F.kl_div(second, first, reduction="none", log_target=True).sum(dim=-1)


def summed(each: Tensor, marked: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of `each` (n,), one value per token marked in (B, L), under the weights (B,) of the tokens' rows, if any."""
    return (each if weights is None else each * weights[:, None].expand_as(marked)[marked]).sum()


def without(targets: Tensor, logits: Tensor) -> Tensor:
    """Logits (n, V) of the distributions from which the token of `targets` (n,) is taken out, the others renormalised.

    The token's logit is the lowest finite number, whose probability is exactly 0: with -inf a divergence would be no number.
    """
    wide = widened(logits)
    return wide.scatter(-1, targets[:, None], torch.finfo(wide.dtype).min)


def widened(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
