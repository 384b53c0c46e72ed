"""Running means of loss terms between two log lines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycl.events import Term
from raycl.methods.common.base import Penalty
from raycl.train.workers import Workers


@dataclass(frozen=True)
class Means:
    """What a `Step` record says of the steps since the one before."""

    loss: float
    tokens_per_s: float
    terms: dict[str, Term]


class Meter:
    """Means over the steps since the last reading, summed over the workers with one exchange."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._reset()

    def _reset(self) -> None:
        self.count, self.tokens, self.started = 0, 0, time.perf_counter()
        self.totals: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, task_loss: Tensor, penalties: dict[str, Penalty], tokens: int) -> None:
        """Count a micro-batch; nothing is synchronised here."""
        self.count += 1
        self.tokens += tokens
        terms = {"": task_loss, **{name: term.raw for name, term in penalties.items()}}
        self.weights = {name: term.weight for name, term in penalties.items()}
        for name, value in terms.items():
            self.totals[name] = self.totals.get(name, 0) + value.detach().float()

    def state(self) -> dict[str, Any]:
        """The sums since the last reading, as JSON, so that a resumed stage logs what an undisturbed one does."""
        sums = {name: float(value) for name, value in self.totals.items()}
        return {"count": self.count, "tokens": self.tokens, "sums": sums, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.count, self.tokens, self.weights = state["count"], state["tokens"], dict(state["weights"])
        device = self.workers.device
        self.totals = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}

    def read(self) -> Means:
        """The means over all workers since the last reading; starts over."""
        seconds = time.perf_counter() - self.started
        numbers = torch.stack([torch.as_tensor(float(self.tokens), device=self.workers.device), *self.totals.values()])
        self.workers.sum([numbers])
        tokens, *sums = numbers.tolist()
        means = dict(zip(self.totals, (s / (self.count * self.workers.world) for s in sums), strict=True))
        loss = means.pop("")
        terms = {
            name: Term(raw, raw * self.weights[name], raw * self.weights[name] / max(loss, 1e-12))
            for name, raw in means.items()
        }
        self._reset()
        return Means(loss, tokens / max(seconds, 1e-9), terms)
