"""Siblings packed: stages of one parent, task and data that differ in learning rate, weights or seed train at once.

The steps of n siblings go in lockstep. A step's forward and backward pass over the base model is one, of the rows of all
of them (`raycl.adapters.packed`); losses, penalties, clipping and AdamW are each sibling's own. What a sibling ends with is
what it ends with alone, to round-off: its rows meet no other's, and there is no dropout.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Inputs
from raycl.adapters.branches import trained_itself
from raycl.adapters.packed import CannotPack, Seats
from raycl.adapters.predicting import precision, width
from raycl.errors import DivergedError
from raycl.state.stage_state import StagePart
from raycl.train.engine_torch import TorchEngine
from raycl.train.layout import MicroBatch
from raycl.train.loop import TrainLoop
from raycl.train.module import StageModule, summed_loss
from raycl.train.stage import Ready, StageRun, Training


@dataclass
class Pack:
    """Stages that train at once; `run` does it, from one clean backbone to another."""

    runs: Sequence[StageRun]
    diverged: dict[int, DivergedError] = field(default_factory=dict, init=False)
    """The siblings whose loss was no number, by place; the others go on."""

    def run(self) -> list[StagePart | None]:
        """The siblings' parts, none for one that diverged.

        Raises CannotPack, before anything is trained, for siblings that must train one by one.
        """
        backbone = self.runs[0].model.backbone
        seats = Seats(backbone)
        try:
            readies, trainings = [], []
            for run in self.runs:
                self._check(run)
                readies.append(run.prepare())
                trainings.append(run.training(readies[-1]))
                if (name := trained_itself(backbone)) is not None:
                    raise CannotPack(f"the base model's own weights train, such as {name}")
                seats.take()
            seats.pack()
            _check_alike(trainings)
            self._train(seats, readies, trainings)
            return [self._end(seats, number, readies[number], trainings[number]) for number in range(len(self.runs))]
        finally:
            for run in self.runs:
                run.method.remove()

    def _check(self, run: StageRun) -> None:
        """Raises CannotPack for a stage whose settings do not let it share a pass."""
        if run.imported is not None:
            raise CannotPack("an imported branch is not trained")
        if run.spec.model.dropout or getattr(run.method.params, "dropout", 0):
            raise CannotPack("with dropout a stage's draws depend on what runs beside it")
        if run.spec.train.compile:
            raise CannotPack("train.compile: packed layers are not compiled")
        if run.partial is not None:
            raise CannotPack("train.checkpoint_every: siblings that train at once keep no mid-stage checkpoints")

    def _train(self, seats: Seats, readies: Sequence[Ready], trainings: Sequence[Training]) -> None:
        """All steps of all siblings. The seconds are shared out evenly."""
        started = time.perf_counter()
        steps = _Lockstep(seats, [ready.module for ready in readies], [one.loop for one in trainings], self.diverged)
        for epoch in range(trainings[0].loop.epochs):
            steps.epoch(epoch)
            for number, training in enumerate(trainings):
                seats.one(number)
                training.offer()
        for run in self.runs:
            run.seconds["train"] = (time.perf_counter() - started) / len(self.runs)

    def _end(self, seats: Seats, number: int, ready: Ready, training: Training) -> StagePart | None:
        """Close a sibling's engine, and make its part."""
        seats.one(number)
        training.loop.engine.close()
        if number in self.diverged:
            return None
        training.settle()
        return self.runs[number].finish(ready)


class _Lockstep:
    """Takes the steps of several loops, with one pass over the base model for all."""

    def __init__(
        self,
        seats: Seats,
        modules: Sequence[StageModule],
        loops: Sequence[TrainLoop],
        diverged: dict[int, DivergedError],
    ) -> None:
        self._seats, self._modules, self._loops, self._diverged = seats, modules, loops, diverged
        self._engines = [engine for loop in loops if isinstance(engine := loop.engine, TorchEngine)]

    def epoch(self, epoch: int) -> None:
        """All steps of one epoch."""
        for number, loop in enumerate(self._loops):
            self._seats.one(number)
            loop.engine.train(True)
            if found := _drops(loop.module):
                raise CannotPack(f"{found}: with dropout a stage's draws depend on what runs beside it")
        for batches in zip(*(loop.batches(epoch) for loop in self._loops), strict=True):
            self._step(batches)

    def _step(self, batches: Sequence[list[MicroBatch]]) -> None:
        """One optimizer step of every sibling."""
        for loop in self._loops:
            loop.step += 1
        for micros in zip(*batches, strict=True):
            self._backward(micros)
            for loop, mine, micro in zip(self._loops, batches, micros, strict=True):
                loop.update(micro is mine[-1])
        for number, loop in enumerate(self._loops):
            if number not in self._diverged:
                try:
                    loop.note()
                except DivergedError as error:
                    self._diverged[number] = error

    def _backward(self, micros: Sequence[MicroBatch]) -> None:
        """One forward and one backward pass over a micro-batch of every sibling."""
        first = self._loops[0]
        rows, each = [row for micro in micros for row in micro.rows], len(micros[0].rows)
        whole = first.encoder.collate(rows, first.workers.device)
        shares = [whole.rows(slice(start, start + each)) for start in range(0, len(rows), each)]
        logits, labels = self._forward(whole, shares)
        parts = zip(logits.chunk(len(micros)), labels.chunk(len(micros)), strict=True)
        losses = []
        for number, (loop, micro, mine, part) in enumerate(zip(self._loops, micros, shares, parts, strict=True)):
            self._seats.one(number)
            said, wanted = part if first.module.backbone.encoder_decoder else _last(*part)
            losses.append(loop.loss(micro, mine, summed_loss(mine, said, wanted, loop.gate), said, wanted))
        self._seats.all()
        (torch.stack(losses).sum() / first.shape.accumulation).backward()
        for engine in self._engines:
            engine.passed()

    def _forward(self, whole: Inputs, shares: Sequence[Inputs]) -> tuple[Tensor, Tensor]:
        """The logits of all rows and the labels they predict; each method is conditioned on its own rows and layers."""
        with precision(self._modules[0].backbone):
            for number, (module, mine) in enumerate(zip(self._modules, shares, strict=True)):
                self._seats.one(number)
                module.method.condition(mine)
                if module.method.soft_prompt() is not None:
                    raise CannotPack("a soft prompt makes inputs of another length")
            self._seats.all()
            return self._modules[0].read(whole, None)


def _last(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A share's last columns, as wide as its own longest answer: what its rows alone would be given as."""
    own = width(labels)
    return logits[:, -own:], labels[:, -own:]


def _check_alike(trainings: Sequence[Training]) -> None:
    """Raises CannotPack for siblings that do not take the same steps with plain torch."""
    loops = [one.loop for one in trainings]
    if len({(loop.epochs, loop.steps, loop.shape) for loop in loops}) > 1:
        raise CannotPack("the siblings take different numbers of steps or rows")
    if loops[0].settings.batches == "equal_tokens" and len({_sizes(loop) for loop in loops}) > 1:
        raise CannotPack(
            "train.batches: equal_tokens: with another seed or other rows a step has another number of them"
        )
    if not all(isinstance(loop.engine, TorchEngine) for loop in loops) or loops[0].workers.world > 1:
        raise CannotPack("siblings train at once in one process with the plain torch engine")


def _sizes(loop: TrainLoop) -> tuple[int, ...]:
    """What the number of rows in each step follows from, where steps are of equal tokens: the seed, and the rows' tokens."""
    return loop.method.info.seed, *(row.tokens for row in loop.rows)


def _drops(module: nn.Module) -> str:
    """The path of a module that drops out in training; empty = none does."""
    parts = module.named_modules()
    return next((path for path, part in parts if isinstance(part, nn.Dropout) and part.p and part.training), "")
