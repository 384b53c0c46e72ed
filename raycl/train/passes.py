"""Data passes: run the training set through the model once, in eval mode, so that a method can fill its moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from raycl.methods.base import Moments
from raycl.train.batches import Encoded, Encoder, by_length
from raycl.train.module import StageModule, precision
from raycl.train.workers import Workers

Progress = Callable[[int, int], None]
"""Called with (examples done, examples in all) of this worker."""


def data_pass(
    module: StageModule,
    encoder: Encoder,
    examples: Sequence[Encoded],
    moments: Moments,
    batch_size: int,
    workers: Workers,
    progress: Progress,
) -> None:
    """Feed every example once, shared out over the workers, and add the moments up.

    The methods' hooks fill `moments`; afterwards every worker holds the sums over all of them. Answers are part of the
    input, padding is not.
    """
    mine = examples[workers.rank :: workers.world] or examples[:1]
    idle = len(examples) <= workers.rank
    module.eval()
    see = module if module.method.observes_layers else module.method.condition
    done = 0
    with torch.no_grad(), precision(module.backbone):
        for batch in by_length(mine, batch_size):
            inputs = encoder.collate([mine[i] for i in batch], workers.device)
            see(inputs)
            done += len(batch)
            progress(done, len(mine))
    for name in sorted(moments):
        if idle:
            moments[name].total.zero_()
            moments[name].count.zero_()
        workers.sum((moments[name].total, moments[name].count))
