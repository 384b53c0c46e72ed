"""The optimizer's part of a stage: epochs of steps and their log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.adapters.predicting import precision
from raycl.errors import DivergedError
from raycl.events import Step
from raycl.fields import at_stage
from raycl.methods.common.base import Gradients, Method
from raycl.methods.common.base import Step as TrainingPass
from raycl.sections import TrainSpec
from raycl.train.batches import Encoded, Encoder
from raycl.train.checkpoints import Checkpoints
from raycl.train.engine import BatchShape, Engine
from raycl.train.layout import Layout, MicroBatch
from raycl.train.losses import base_term, gate_of
from raycl.train.meter import Meter
from raycl.train.module import StageModule
from raycl.train.workers import Workers


@dataclass
class TrainLoop:
    """Epochs of optimizer steps with logging and mid-stage checkpoints."""

    settings: TrainSpec
    method: Method
    module: StageModule
    engine: Engine
    shape: BatchShape
    rows: Sequence[Encoded]
    encoder: Encoder
    workers: Workers
    record: Callable[[Step], None]
    """Takes every log record."""
    checkpoints: Checkpoints | None = None
    step: int = field(default=0, init=False)
    """Optimizer steps done, those before a resumed checkpoint included."""
    logged: list[Step] = field(default_factory=list, init=False)
    """Log records so far, those before a resumed checkpoint included."""

    def __post_init__(self) -> None:
        self.stage = self.method.info.stage
        self.epochs: int = at_stage(self.settings.epochs, self.stage)
        self.lr: float = at_stage(self.settings.lr, self.stage)
        self.steps = math.ceil(len(self.rows) / self.shape.batch) * self.epochs
        self.meter = Meter(self.workers)
        self.gate = gate_of(self.settings)
        self.resume_at = 0
        if self.checkpoints is not None:
            self.resume_at, self.logged = self.checkpoints.load(self.meter)

    def epoch(self, epoch: int) -> bool:
        """All steps of one epoch; steps before a resumed checkpoint only move the data order on.

        Returns whether the weights are now those of this epoch's end: not so where the checkpoint was made after it.
        """
        self.engine.train(True)
        for micro_batches in self.batches(epoch):
            self.step += 1
            if self.step > self.resume_at:
                self.train_step(micro_batches)
        return self.step >= self.resume_at

    def batches(self, epoch: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of this worker for every optimizer step of an epoch."""
        generator = self.method.info.generator(f"order {epoch}")
        return Layout(self.rows, self.shape, self.settings.batches).epoch(generator, self.workers.rank)

    def train_step(self, micro_batches: list[MicroBatch]) -> None:
        """One optimizer step: the token mean of the global batch, plus the method's penalties."""
        for micro in micro_batches:
            inputs = self.encoder.collate(micro.rows, self.workers.device)
            self.engine.backward(self.loss(micro, inputs, *self.engine.loss(inputs, self.gate)))
            self.update(micro is micro_batches[-1])
        self.note()

    def update(self, last: bool) -> None:
        """Let the engine count a backward pass, whose gradients the method sees first if it is a global batch's `last`."""
        if last and self.method.follows_gradients:
            self.method.gradients(Gradients(*self.engine.gradients(), self.workers.sum))
        self.engine.step(self.rate)

    @property
    def rate(self) -> float:
        """The learning rate of the step."""
        return self.lr * lr_factor(self.settings.schedule, self.settings.warmup, self.step, self.steps)

    def note(self) -> None:
        """Log the step, and keep a checkpoint, where it is their turn."""
        settings = self.settings
        if self.step % settings.log_every == 0 or self.step in (1, self.steps):
            self._log(self.rate)
        if self.checkpoints is not None and self.step % settings.checkpoint_every == 0 and self.step < self.steps:
            self.checkpoints.save(self.step, self.logged, self.meter)

    def loss(self, micro: MicroBatch, inputs: Inputs, summed: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """What the step minimises, from a micro-batch as `inputs` and what the module made of it (see `StageModule`)."""
        task_loss = summed / micro.tokens
        progress = (self.step - 1) / self.steps
        seen = TrainingPass(
            inputs, logits, labels, task_loss, progress, self._again, self.workers.sum, micro.tokens, micro.real
        )
        penalties = self.method.penalties(seen)
        if self.settings.base_kl:
            penalties = penalties | base_term(seen, self.module.base(inputs), self.settings.base_kl)
        self.meter.add(task_loss, penalties, int(inputs.mask.numel()))
        self.workers.beat()
        return task_loss + sum(term.raw * term.weight for term in penalties.values())

    def _again(self, inputs: Inputs) -> Tensor:
        """Another forward pass, in the engine's precision: the logits of the answers."""
        with precision(self.module.backbone):
            return self.module.predict(inputs)[0]

    def _log(self, rate: float) -> None:
        """Report the means since the last log line."""
        means = self.meter.read()
        if not math.isfinite(means.loss):
            raise DivergedError(
                f"stage {self.stage} ({self.method.info.task}), step {self.step}: the loss is {means.loss}. "
                f"Lower train.lr (now {self.lr}) or use model.precision=fp32."
            )
        gauges = {**self.method.measures(), "grad_norm": self.engine.grad_norm}
        record = Step(self.stage, self.step, self.steps, rate, means.loss, means.tokens_per_s, means.terms, gauges)
        self.record(record)
        self.logged.append(record)


def lr_factor(schedule: str, warmup: float, step: int, steps: int) -> float:
    """The share of the learning rate at optimizer step `step` of `steps` (1-based): warm-up, then the schedule.

    The first step after the warm-up has the full rate, and the last one still a share of it: 0 would be the step after.
    """
    warm = round(warmup * steps)
    if step <= warm:
        return step / warm
    progress = (step - 1 - warm) / max(1, steps - warm)
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1.0
