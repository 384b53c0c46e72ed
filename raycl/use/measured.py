"""What an export that is not exact costs: scores on the run's test data, and the largest change of logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from raycl.adapters.branches import Branches, LoraShape
from raycl.models.load import LoadedModel
from raycl.report.model_cards import Loss
from raycl.state.stage_state import Branch
from raycl.tasks.task import Example, Task
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from raycl.use.heads import Head
from raycl.use.prompts import encoder_of
from raycl.use.served import Served

PROMPTS = 32
"""Test prompts on which logits are compared, at most."""


def losses(
    head: Head, loaded: LoadedModel, tasks: Sequence[Task], branch: Branch, task: str | None = None
) -> tuple[Loss, ...]:
    """The scores of a state as raycl serves it, and of one adapter in its place, both in fp32; `task` as in `Head.keys`."""
    with Served(head, loaded, task) as served:
        before = [served.score(one) for one in tasks]
    with carrying(loaded, branch):
        after = [bare(head, loaded).score(one) for one in tasks]
    return tuple(
        Loss(one.name, old.score, new.score, len(one.test)) for one, old, new in zip(tasks, before, after, strict=True)
    )


def bare(head: Head, loaded: LoadedModel) -> Decoder:
    """The model as it stands, with no method on it, in this process alone."""
    workers = Workers(device=str(loaded.backbone.device))
    return Decoder(
        loaded,
        None,
        encoder_of(head, loaded.tokenizer, loaded.backbone.encoder_decoder),
        head.spec.eval.batch_size,
        workers,
        head.spec.eval.batch_tokens,
    )


@contextmanager
def carrying(loaded: LoadedModel, branch: Branch) -> Iterator[None]:
    """One branch on the base model, as PEFT would put it there."""
    shape = LoraShape(branch.rank, branch.alpha, targets=tuple(branch.a))
    branches = Branches(loaded.backbone, shape, [])
    try:
        branches.start(branch.a, branch.b, torch.Generator(), train="")
        yield
    finally:
        branches.remove()


def prompts_of(tasks: Sequence[Task]) -> list[Example]:
    """Test prompts of all tasks, as many of each."""
    each = max(1, PROMPTS // len(tasks))
    return [example for task in tasks for example in task.test[:each]]


def next_logits(head: Head, loaded: LoadedModel, tasks: Sequence[Task]) -> list[Tensor]:
    """What the model as it stands says after test prompts of the tasks, (V,) each."""
    return [one[-1] for one in bare(head, loaded).logits(prompts_of(tasks))]


def largest_change(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference between two lists of logits."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
