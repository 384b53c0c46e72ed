"""The optimizer's part of a stage: epochs of steps, the log, mid-stage checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from raycl.methods.base import Method, Penalty
from raycl.spec import TrainSpec, at_stage
from raycl.train.batches import Encoded, Encoder, MicroBatch, global_batches
from raycl.train.engine import BatchShape, Engine
from raycl.train.selection import Best
from raycl.train.workers import Workers

Event = dict[str, Any]
Report = Callable[[Event], None]


class Partial(Protocol):
    """Where a stage may leave a mid-stage checkpoint; the host decides what that means."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint of this very stage, or none."""

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep a checkpoint in place of the last one."""


class TrainLoop:
    """Epochs of optimizer steps with logging and mid-stage checkpoints."""

    def __init__(
        self,
        settings: TrainSpec,
        method: Method,
        engine: Engine,
        shape: BatchShape,
        train: list[Encoded],
        encoder: Encoder,
        workers: Workers,
        record: Report,
        partial: Partial | None,
        best: Best | None = None,
    ) -> None:
        self.best = best
        self.settings, self.method, self.engine, self.shape = settings, method, engine, shape
        self.train, self.encoder, self.workers, self.record, self.partial = train, encoder, workers, record, partial
        self.stage = method.info.stage
        self.epochs: int = at_stage(settings.epochs, self.stage)
        self.lr: float = at_stage(settings.lr, self.stage)
        self.steps = math.ceil(len(train) / shape.batch) * self.epochs
        self.step = 0
        self.meter = Meter(workers)
        self.logged: list[Event] = []
        """Log records so far, those before a resumed checkpoint included."""
        self.resume_at = self._resume()

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
            task_loss = self.engine.loss(inputs) / micro.tokens
            penalties = self.method.penalties()
            loss = task_loss + sum(term.raw * term.weight for term in penalties.values())
            self.engine.backward(loss)
            self.engine.step(rate)
            self.meter.add(task_loss, penalties, int(inputs.mask.numel()))
        if self.step % settings.log_every == 0 or self.step in (1, self.steps):
            self._log(rate)
        if settings.checkpoint_every and self.step % settings.checkpoint_every == 0 and self.step < self.steps:
            self._checkpoint()

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

    def _checkpoint(self) -> None:
        """Leave trained weights, Adam's moments, the best epoch so far, and every worker's own state with the host."""
        if self.partial is None:
            return
        own = {"rng": torch.get_rng_state(), "meter": self.meter.state()}
        if torch.cuda.is_available():
            own["rng_cuda"] = torch.cuda.get_rng_state(self.workers.device)
        everyone = self.workers.gather(own)
        if self.workers.rank != 0:
            return
        tensors = {
            f"worker {rank}/{name}": worker[name]
            for rank, worker in enumerate(everyone)
            for name in worker
            if name != "meter"
        }
        facts = {"step": self.step, "log": self.logged, "meters": [worker["meter"] for worker in everyone]}
        for index, parameter in enumerate(self.engine.parameters):
            tensors[f"{index}/value"] = parameter.detach()
            for name, value in self.engine.optimizer.state[parameter].items():
                tensors[f"{index}/{name}"] = value.detach()
        if self.best is not None and self.best.values:
            facts["best_loss"] = self.best.loss
            tensors |= {f"best/{index}": value for index, value in enumerate(self.best.values)}
        self.partial.save(tensors, facts)

    def _resume(self) -> int:
        """Take up a mid-stage checkpoint, if all workers see the same one; returns the step it was made at."""
        found = self.partial.load() if self.partial is not None else None
        steps = self.workers.gather(found and int(found[1]["step"]))
        if found is None or len(set(steps)) > 1:
            return 0
        tensors, facts = found
        for index, parameter in enumerate(self.engine.parameters):
            parameter.data.copy_(tensors.pop(f"{index}/value"))
            prefix = f"{index}/"
            values = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            self.engine.optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter) for name, value in values.items()
            }
        if self.best is not None and "best_loss" in facts:
            values = [tensors[f"best/{index}"].to(parameter) for index, parameter in enumerate(self.engine.parameters)]
            self.best.loss, self.best.values = facts["best_loss"], values
        self._resume_own(tensors, facts["meters"])
        self.logged = list(facts["log"])
        return steps[0]

    def _resume_own(self, tensors: dict[str, Tensor], meters: list[dict[str, Any]]) -> None:
        """Take up this worker's own state, where the checkpoint was made by as many workers as there are now."""
        if len(meters) != self.workers.world:
            return
        self.meter.restore(meters[self.workers.rank])
        prefix = f"worker {self.workers.rank}/"
        torch.set_rng_state(tensors[f"{prefix}rng"])
        if f"{prefix}rng_cuda" in tensors:
            torch.cuda.set_rng_state(tensors[f"{prefix}rng_cuda"], self.workers.device)


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

    def read(self) -> dict[str, Any]:
        """loss, tokens_per_s (tokens run, padding included, over all workers), terms; starts over."""
        seconds = time.perf_counter() - self.started
        numbers = torch.stack([torch.as_tensor(float(self.tokens), device=self.workers.device), *self.totals.values()])
        self.workers.sum([numbers])
        tokens, *sums = numbers.tolist()
        means = dict(zip(self.totals, (s / (self.count * self.workers.world) for s in sums), strict=True))
        loss = means.pop("")
        terms = {
            name: {
                "raw": raw,
                "weighted": raw * self.weights[name],
                "ratio": raw * self.weights[name] / max(loss, 1e-12),
            }
            for name, raw in means.items()
        }
        self._reset()
        return {"loss": loss, "tokens_per_s": tokens / max(seconds, 1e-9), "terms": terms}


def lr_factor(schedule: str, warmup: float, step: int, steps: int) -> float:
    """The share of the learning rate at optimizer step `step` of `steps` (1-based): warm-up, then the schedule."""
    warm = round(warmup * steps)
    if step <= warm:
        return step / warm
    progress = (step - warm) / max(1, steps - warm)
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1.0
