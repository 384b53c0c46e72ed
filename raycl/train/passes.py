"""Passes in eval mode: the training set once, so that a method can fill its statistics; means over answer tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Inputs
from raycl.adapters.predicting import precision
from raycl.methods.common.base import Moments
from raycl.methods.common.teacher import divergence
from raycl.train.batches import Encoded, Encoder, by_length
from raycl.train.module import StageModule
from raycl.train.workers import Workers

Progress = Callable[[int, int], None]
"""Called with (examples done, examples in all) of this worker."""


@dataclass(frozen=True)
class DataPass:
    """A pass of the module, with its method installed, over examples that are shared out over the workers."""

    module: StageModule
    encoder: Encoder
    batch_size: int
    workers: Workers

    def run(self, examples: Sequence[Encoded], moments: Moments, progress: Progress = lambda done, total: None) -> None:
        """Feed every example once and add the moments up.

        The method's hooks fill `moments`; afterwards every worker holds the sums over all of them. Answers are part of
        the input, padding is not.
        """
        workers = self.workers
        self._feed(examples[workers.rank :: workers.world] or examples[:1], progress)
        idle = len(examples) <= workers.rank
        for name in sorted(moments):
            if idle:
                moments[name].total.zero_()
                moments[name].count.zero_()
            workers.sum((moments[name].total, moments[name].count))

    def _feed(self, mine: Sequence[Encoded], progress: Progress) -> None:
        """This worker's share, in batches; with gradients one example at a time."""
        self.module.eval()
        gradients = self.module.method.observes == "gradients"
        done = 0
        with torch.set_grad_enabled(gradients), precision(self.module.backbone):
            for batch in by_length(mine, 1 if gradients else self.batch_size):
                self._see(self.encoder.collate([mine[i] for i in batch], self.workers.device))
                done += len(batch)
                self.workers.beat()
                progress(done, len(mine))

    def _see(self, inputs: Inputs) -> None:
        """What the method observes of a batch; of gradients, that of one example's -sum log p."""
        module = self.module
        if module.method.observes == "inputs":
            module.method.condition(inputs)
            return
        summed, *_ = module(inputs)
        if module.method.observes == "gradients":
            summed.backward()
            module.method.observe_gradients()
            module.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class TokenMean:
    """Means per answer token over rows that are shared out over the workers, of the module in eval mode."""

    module: StageModule
    encoder: Encoder
    batch_size: int
    workers: Workers

    @torch.no_grad()
    def of(self, rows: Sequence[Encoded], summed: Callable[[Inputs], Tensor]) -> float:
        """The mean of what `summed` adds up over the answer tokens of a batch; 0 of rows without any."""
        self.module.eval()
        mine = rows[self.workers.rank :: self.workers.world]
        total = torch.zeros(2, device=self.workers.device)
        with precision(self.module.backbone):
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                total[0] += summed(self.encoder.collate(batch, self.workers.device))
                total[1] += sum(len(row.answer) for row in batch)
        self.workers.sum([total])
        return float(total[0] / total[1].clamp(min=1))

    def cross_entropy(self, rows: Sequence[Encoded]) -> float:
        """-log p in nats, weighted as the rows are."""
        return self.of(rows, lambda inputs: self.module(inputs)[0])

    def kl_to_base(self, rows: Sequence[Encoded]) -> float:
        """KL(model || base model) in nats over all tokens. Raises ValueError where the base model's own weights train."""
        return self.of(rows, self._apart)

    def _apart(self, inputs: Inputs) -> Tensor:
        logits, labels = self.module.predict(inputs)
        answers = labels != IGNORE
        return divergence(logits[answers], self.module.base(inputs)[answers]).sum()
