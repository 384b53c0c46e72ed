"""Data passes: run the training set through the model once, in eval mode, so that a method can fill its statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Moments
from raycl.train.batches import Encoded, Encoder, by_length
from raycl.train.module import StageModule, precision
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
