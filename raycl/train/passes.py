"""Data passes: run the training set through the model once, in eval mode, so that a method can fill its statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Moments
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
    see, batch_size = _viewer(module, batch_size)
    done = 0
    with torch.set_grad_enabled(batch_size == 0), precision(module.backbone):
        for batch in by_length(mine, max(1, batch_size)):
            see(encoder.collate([mine[i] for i in batch], workers.device))
            done += len(batch)
            progress(done, len(mine))
    for name in sorted(moments):
        if idle:
            moments[name].total.zero_()
            moments[name].count.zero_()
        workers.sum((moments[name].total, moments[name].count))


def _viewer(module: StageModule, batch_size: int) -> tuple[Callable[[Inputs], object], int]:
    """What to call on every batch, and the batch size; 0 = single examples with gradients."""
    observes = module.method.observes
    if observes == "inputs":
        return module.method.condition, batch_size
    return (module, batch_size) if observes == "layers" else (partial(_see_gradients, module), 0)


def _see_gradients(module: StageModule, inputs: Inputs) -> None:
    """The gradient of one example's -sum log p, for the method to take up."""
    module(inputs)[0].backward()
    module.method.observe_gradients()
    module.zero_grad(set_to_none=True)
