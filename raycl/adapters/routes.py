"""Where inputs go, where a method chooses a branch for each: of a batch, of one input in words, and as a rule for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycl.adapters.chosen import Groups
from raycl.adapters.gaussian_router import GaussianRouter


@dataclass(frozen=True)
class Route:
    """Whose weights answer one input, where a method that needs no task id decides that input by input."""

    task: str
    """The likeliest task."""
    probability: float
    """How likely it is, 0 to 1."""
    runner_up: str | None = None
    """The second likeliest task; none where there is one task."""
    runner_up_probability: float = 0.0
    known: bool = True
    """Whether the input is like those of its task; if not, the base model answers alone."""
    alone: bool = True
    """Whether the weights of this one task answer (or the base model's): then the answer stays as long as the route does."""


@dataclass(frozen=True)
class Routed:
    """Where the inputs of a batch go."""

    order: Tensor
    """(B, T): the tasks by distance, nearest first."""
    chances: Tensor
    """(B, T): p, by task."""
    known: Tensor
    """(B,): whether the input is like those of its nearest task."""
    groups: Groups
    """The rows by the branch that they take in hard routing."""

    def named(self, names: Sequence[str], alone: bool) -> list[Route]:
        """Each input's route in words; `names` are the tasks in the order of `chances`, `alone` as in a route."""
        rows = zip(self.order.tolist(), self.chances.tolist(), self.known.tolist(), strict=True)
        return [_route(names, order, chances, known, alone) for order, chances, known in rows]


@dataclass(frozen=True)
class RoutingRule:
    """h (D,) -> d_t = |W h - m_t|^2 for every task; the least one is the task, with p = softmax(-d / 2T)."""

    tasks: tuple[str, ...]
    """Those that are told apart, in the order of the tensors' rows."""
    answers: tuple[int, ...]
    """For each task the place in `tasks` of the one whose adapter answers it: another one in a family of tasks."""
    layer: str | None
    """Path in the model of the layer whose output is pooled to h; none = the token embeddings are."""
    whole_prompt: bool
    """Whether h is the mean over the whole prompt, or over the example's text in it."""
    temperature: float
    """T."""
    tensors: Mapping[str, Tensor]
    """`whiten` W (D, D) and `means` m (T, D), fp64 on the CPU. Where inputs that no task knows go to the base model also
    `limits` (T,), and for each task i `whiten.i` and `means.i`, whose distance must not be beyond its limit."""


def numbers(router: GaussianRouter, suffix: str = "") -> dict[str, Tensor]:
    """W and m of a classifier, named as in a rule. W is the inverse of the covariance's factor L: W h is one product."""
    eye = torch.eye(len(router.factor), dtype=torch.float64, device=router.factor.device)
    whiten = torch.linalg.solve_triangular(router.factor, eye, upper=False)
    return {f"whiten{suffix}": whiten.cpu(), f"means{suffix}": router.means.cpu()}


def rule_tensors(router: GaussianRouter, apart: Sequence[GaussianRouter], limits: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a rule: of the classifier, and where unknown inputs are looked for of each task alone."""
    tensors = numbers(router)
    for index, one in enumerate(apart):
        tensors |= numbers(one, f".{index}")
    return tensors if limits is None else tensors | {"limits": limits.double().cpu()}


def _route(names: Sequence[str], order: list[int], chances: list[float], known: bool, alone: bool) -> Route:
    """One input's route, from all tasks, likeliest first, and their probabilities in the order of the tasks."""
    first = order[0]
    second = [(names[index], chances[index]) for index in order[1:2]] or [(None, 0.0)]
    return Route(names[first], chances[first], *second[0], known, alone)
