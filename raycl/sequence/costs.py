"""What a run computes, in multiply-adds: passes forward and back, and answers. Matrix products are counted; what is added up
element by element is not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raycl.analysis.cost import Work, total
from raycl.models.counts import Batch, Products
from raycl.spec import Beside


@dataclass(frozen=True)
class Trained:
    """What a stage's passes run through beside the base model."""

    ranks: int
    """Ranks of the frozen branches, summed up."""
    rank: int | None
    """Rank of the branch that trains; 0 = none does (soft prompts), none = all weights do."""
    again: bool = False
    """Whether the backward pass computes the forward pass a second time (gradient checkpointing)."""

    @property
    def all_ranks(self) -> int:
        """Frozen branches and the one that trains."""
        return self.ranks + (self.rank or 0)


def training(products: Products, batch: Batch, trained: Trained) -> Work:
    """A micro-batch forward and back.

    Back, the gradient passes through what the forward pass ran: as many multiply-adds again, so that a frozen base costs two
    forward passes; and weights that train cost as much as they did forward.
    """
    forward = products.forward(batch, trained.all_ranks)
    times = 3 if trained.again else 2
    return Work(times * forward + products.own(batch, trained.rank), times * products.all_layers)


def reading(products: Products, batch: Batch, trained: Trained) -> Work:
    """A forward pass: a batch of a data pass."""
    return Work(products.forward(batch, trained.all_ranks), products.all_layers)


def stepping(products: Products, batch: Batch, trained: Trained, beside: Beside) -> Work:
    """A micro-batch in a step of training: forward and back, and what is passed through the model beside that."""

    def over(length: float) -> Batch:
        return replace(batch, source=round(length * batch.source))

    return total(
        [
            *(training(products, over(length), trained) for length in (1.0, *beside.trained)),
            *(reading(products, over(length), trained) for length in beside.read),
        ]
    )


def answering(products: Products, batch: Batch, ranks: int, weight_bytes: float) -> Work:
    """Read prompts, and write `batch.answer` tokens of each, one after another, with what was computed before kept."""
    steps, rows = batch.answer, batch.rows
    prompt = Work(products.forward(Batch(rows, batch.source, 0), ranks), products.layers)
    if products.answer:
        linear, branch, layers = products.answer, products.answer_branch, products.answer_layers
        met = steps * batch.source * products.cross_pairs + steps * (steps + 1) // 2 * products.answer_pairs
    else:
        steps -= 1  # the first token is the prompt's own
        linear, branch, layers = products.source, products.branch, products.layers
        met = (steps * batch.source + steps * (steps + 1) // 2) * products.pairs
    weights = linear + products.head + ranks * branch
    return prompt + Work(
        layers=steps * layers,
        written=rows * (steps * weights + met),
        moved=weight_bytes * (steps * weights + rows * met),
    )
