"""The optimizer's part of a stage: epochs of steps and their log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Gradients, Method, Step
from raycl.spec import TrainSpec, at_stage
from raycl.train.batches import Encoded, Encoder, MicroBatch, global_batches
from raycl.train.checkpoints import Checkpoints
from raycl.train.engine import BatchShape, Engine
from raycl.train.meter import Event, Meter
from raycl.train.module import StageModule, precision
from raycl.train.workers import Workers

Report = Callable[[Event], None]


class TrainLoop:
    """Epochs of optimizer steps with logging and mid-stage checkpoints."""

    def __init__(
        self,
        settings: TrainSpec,
        method: Method,
        module: StageModule,
        engine: Engine,
        shape: BatchShape,
        train: list[Encoded],
        encoder: Encoder,
        workers: Workers,
        record: Report,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.settings, self.method, self.module, self.engine, self.shape = settings, method, module, engine, shape
        self.train, self.encoder, self.workers, self.record, self.checkpoints = (
            train,
            encoder,
            workers,
            record,
            checkpoints,
        )
        self.stage = method.info.stage
        self.epochs: int = at_stage(settings.epochs, self.stage)
        self.lr: float = at_stage(settings.lr, self.stage)
        self.steps = math.ceil(len(train) / shape.batch) * self.epochs
        self.step = 0
        self.meter = Meter(workers)
        self.logged: list[Event] = []
        """Log records so far, those before a resumed checkpoint included."""
        self.resume_at = 0
        if checkpoints is not None:
            self.resume_at, self.logged = checkpoints.load(self.meter)

    def epoch(self, epoch: int) -> bool:
        """All steps of one epoch; steps before a resumed checkpoint only move the data order on.

        Returns whether the weights are now those of this epoch's end: not so where the checkpoint was made after it.
        """
        self.engine.train(True)
        for micro_batches in self._batches(epoch):
            self.step += 1
            if self.step > self.resume_at:
                self._step(micro_batches)
        return self.step >= self.resume_at

    def _batches(self, epoch: int) -> Iterator[list[MicroBatch]]:
        generator = self.method.info.generator(f"order {epoch}")
        shape, workers = self.shape, self.workers
        return global_batches(self.train, shape.batch, shape.micro, workers.rank, workers.world, generator)

    def _step(self, micro_batches: list[MicroBatch]) -> None:
        """One optimizer step: the token mean of the global batch, plus the method's penalties."""
        settings = self.settings
        rate = self.lr * lr_factor(settings.schedule, settings.warmup, self.step, self.steps)
        for micro in micro_batches:
            inputs = self.encoder.collate(micro.rows, self.workers.device)
            summed, logits, labels = self.engine.loss(inputs)
            task_loss = summed / micro.tokens
            progress = (self.step - 1) / self.steps
            counts = micro.tokens, micro.real
            step = Step(inputs, logits, labels, task_loss, progress, self._again, self.workers.sum, *counts)
            penalties = self.method.penalties(step)
            loss = task_loss + sum(term.raw * term.weight for term in penalties.values())
            self.engine.backward(loss)
            if micro is micro_batches[-1] and self.method.follows_gradients:
                self.method.gradients(Gradients(*self.engine.gradients(), self.workers.sum))
            self.engine.step(rate)
            self.meter.add(task_loss, penalties, int(inputs.mask.numel()))
        if self.step % settings.log_every == 0 or self.step in (1, self.steps):
            self._log(rate)
        if self.checkpoints is not None and self.step % settings.checkpoint_every == 0 and self.step < self.steps:
            self.checkpoints.save(self.step, self.logged, self.meter)

    def _again(self, inputs: Inputs) -> Tensor:
        """Another forward pass, in the engine's precision: the logits of the answers."""
        with precision(self.module.backbone):
            return self.module.predict(inputs)[0]

    def _log(self, rate: float) -> None:
        """Report the means since the last log line."""
        record = {"event": "step", "stage": self.stage, "step": self.step, "steps": self.steps, "lr": rate}
        record |= self.meter.read() | {"gauges": self.method.measures()}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(
                f"stage {self.stage} ({self.method.info.task}), step {self.step}: the loss is {record['loss']}. "
                f"Lower train.lr (now {self.lr}) or use model.precision=fp32."
            )
        self.record(record)
        self.logged.append(record)


def lr_factor(schedule: str, warmup: float, step: int, steps: int) -> float:
    """The share of the learning rate at optimizer step `step` of `steps` (1-based): warm-up, then the schedule."""
    warm = round(warmup * steps)
    if step <= warm:
        return step / warm
    progress = (step - warm) / max(1, steps - warm)
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1.0
