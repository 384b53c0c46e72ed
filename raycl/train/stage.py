"""One stage: from stage state t-1 and a task to part t. Knows no method, no host and no file."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from raycl.adapters.branches import trained_itself
from raycl.events import Phase, StageEvent, StageStart, Step
from raycl.fields import at_stage
from raycl.methods.common.base import Method, Moments, When
from raycl.models.load import LoadedModel
from raycl.spec import RunSpec
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.tasks.stored import Picked
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder
from raycl.train.checkpoints import Checkpoints, Partial
from raycl.train.compiled import compiled
from raycl.train.engine import BatchShape, Work, make_engine
from raycl.train.frozen import Frozen
from raycl.train.generation import Decoder
from raycl.train.loop import TrainLoop
from raycl.train.module import StageModule
from raycl.train.passes import DataPass, TokenMean
from raycl.train.selection import Best
from raycl.train.workers import Workers

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Ready:
    """A stage whose method is installed: what its training works on, and what comes after it."""

    own: Sequence[Example]
    """The task's own examples, without those held out."""
    held_out: Sequence[Encoded]
    rows: Sequence[Encoded]
    """What is trained on."""
    module: StageModule
    decoder: Decoder
    frozen: Frozen


@dataclass(frozen=True)
class Training:
    """A stage in training: its loop, and the best epoch so far where one is chosen."""

    loop: TrainLoop
    best: Best | None
    held_out_loss: Callable[[], float]

    def offer(self) -> None:
        """An epoch has ended."""
        if self.best is not None:
            self.best.offer(self.held_out_loss())

    def settle(self) -> None:
        """The weights are those that the stage keeps."""
        if self.best is not None:
            self.best.restore()


@dataclass
class StageRun:
    """All that one stage works with; `run` does it."""

    model: LoadedModel
    method: Method
    state: StageState
    task: Task
    spec: RunSpec
    encoder: Encoder
    workers: Workers
    report: Callable[[StageEvent], None]
    partial: Partial | None = None
    imported: Branch | None = None
    """A branch trained elsewhere that the stage takes in, and trains nothing."""
    log: list[Step] = field(default_factory=list)
    """The records of the training, for the manifest."""
    seconds: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    """What was measured of the stage beside what the method measures."""
    trainable: int = 0
    """Numbers that the optimizer of this stage owned."""

    @property
    def stage(self) -> int:
        """1-based index of this stage."""
        return self.method.info.stage

    def run(self) -> StagePart:
        """Install, pass, train, pass, consolidate. The backbone is clean again afterwards, even after an error."""
        started = time.perf_counter()
        try:
            ready = self.prepare()
            if self.imported is None:
                self.train(ready)
            else:
                self.method.take(self.imported)
            part = self.finish(ready)
        finally:
            self.method.remove()
        self.seconds["other"] = time.perf_counter() - started - sum(self.seconds.values())
        return part

    def prepare(self) -> Ready:
        """All up to the training: the method on the backbone, its rows, its pass before."""
        self._seed()
        own, held_out = self.split()
        self.method.install(self.model.backbone, self.state)
        scoring = self.spec.eval
        decoder = Decoder(self.model, self.method, self.encoder, scoring.batch_size, self.workers, scoring.batch_tokens)
        rows = self.encoder.encode_rows(self.method.examples(own, decoder.write))
        self._announce(len(rows))
        module = StageModule(self.model.backbone, self.method)
        self._pass("before", module, rows, self.method.initialise)
        self.workers.agree(_own_tensors(module))
        return Ready(own, held_out, rows, module, decoder, Frozen(self.model.backbone.model, self.state))

    def finish(self, ready: Ready) -> StagePart:
        """All after the training: what is measured, the pass after, and the stage's part."""
        self._observe(ready.module, ready.own)
        moments = self._pass("after", ready.module, ready.rows, None)
        self.method.recite(partial(ready.decoder.ask, self.task))
        self.method.memorise(self.encoder.token_rows)
        part = self.method.consolidate(moments or {})
        if part.branch is not None:
            self.gauges["update_norm"] = part.branch.length
        ready.frozen.require_unchanged()
        return part

    def _seed(self) -> None:
        """All global generators from seed and stage, apart by rank (dropout); data order is the same on every rank."""
        seed = self.method.info.generator("global").initial_seed() + self.workers.rank
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def _announce(self, rows: int) -> None:
        epochs = at_stage(self.spec.train.epochs, self.stage) if self.imported is None else 0
        steps = math.ceil(rows / self.spec.train.batch_size) * epochs
        self.report(StageStart(self.stage, self.task.name, steps))

    def split(self) -> tuple[Sequence[Example], Sequence[Encoded]]:
        """Train and held-out part of the training set; the test set is never touched."""
        examples = self.task.train
        if self.spec.train.keep == "last" or self.spec.train.holdout == 0:
            return examples, []
        count = max(1, round(len(examples) * self.spec.train.holdout))
        order = self._order(len(examples), "holdout")
        held_out = Picked(examples, sorted(order[:count]))
        return Picked(examples, sorted(order[count:])), self.encoder.encode(held_out)

    def _drawn(self, rows: Sequence[Drawn], most: int | None, purpose: str) -> Sequence[Drawn]:
        """All rows, or at most so many, drawn at random."""
        if most is None or most >= len(rows):
            return rows
        return Picked(rows, sorted(self._order(len(rows), purpose)[:most]))

    def _order(self, count: int, purpose: str) -> list[int]:
        return torch.randperm(count, generator=self.method.info.generator(purpose)).tolist()

    def _of_pass(self, train: Sequence[Encoded]) -> Sequence[Encoded]:
        """The rows of a data pass: all, or as many as the method wants, by rows or by tokens."""
        if (tokens := self.method.pass_tokens) is not None:
            train = Picked(train, sorted(enough(train, self._order(len(train), "pass"), tokens)))
        return self._drawn(train, self.method.pass_examples, "pass")

    def _mean(self, module: StageModule) -> TokenMean:
        return TokenMean(module, self.encoder, self.spec.eval.batch_size, self.workers)

    def _observe(self, module: StageModule, own: Sequence[Example]) -> None:
        """Measure how far the trained model is from the base model on the task's own rows, where that is asked for and the
        base model is there."""
        most = self.spec.train.drift_rows
        if most and trained_itself(self.model.backbone) is None:
            rows = self.encoder.encode(self._drawn(own, most, "drift"))
            self.gauges["kl_to_base"] = self._mean(module).kl_to_base(rows)

    def _pass(
        self, when: When, module: StageModule, train: Sequence[Encoded], use: Callable[[Moments], None] | None
    ) -> Moments | None:
        """One data pass, if the method asks for it."""
        started = time.perf_counter()
        moments = self.method.collect(when)
        if moments is not None:
            data = DataPass(module, self.encoder, self.spec.eval.batch_size, self.workers)
            data.run(self._of_pass(train), moments, self._progress(f"data pass {when} training"))
            if use is not None:
                use(moments)
        self.seconds[f"pass_{when}"] = time.perf_counter() - started
        return moments

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(Phase(self.stage, phase, done, total))

    def _record(self, step: Step) -> None:
        """Keep a training record for the manifest, and report it."""
        self.log.append(step)
        self.report(step)

    def train(self, ready: Ready) -> None:
        """The optimizer's part of the stage."""
        started = time.perf_counter()
        training = self.training(ready)
        try:
            with compiled(self.model.backbone.model) if self.spec.train.compile else nullcontext():
                for epoch in range(training.loop.epochs):
                    if training.loop.epoch(epoch):
                        training.offer()
        finally:
            training.loop.engine.close()
        training.settle()
        self.seconds["train"] = time.perf_counter() - started

    def training(self, ready: Ready) -> Training:
        """A new engine, and a loop at its first step or at that of the last checkpoint."""
        settings, module = self.spec.train, ready.module
        shape = batch_shape(self.spec, self.workers.world)
        engine = make_engine(Work(module, settings, shape, self.spec.model.precision == "bf16", self.workers))
        self.trainable = sum(parameter.numel() for parameter in engine.parameters)
        best = Best(engine.parameters) if ready.held_out else None
        saved = None
        if self.partial is not None:
            saved = Checkpoints(self.partial, engine, best, self.workers, self.method.running)
        try:
            loop = TrainLoop(
                settings,
                self.method,
                module,
                engine,
                shape,
                ready.rows,
                self.encoder,
                self.workers,
                self._record,
                saved,
            )
        except BaseException:
            engine.close()
            raise
        self.log.extend(loop.logged)
        return Training(loop, best, lambda: self._mean(module).cross_entropy(ready.held_out))


def enough(rows: Sequence[Encoded], order: Sequence[int], tokens: int) -> list[int]:
    """The places in `order` up to the first at which the rows have `tokens` tokens together; all if they never do."""
    chosen: list[int] = []
    for place in order:
        if tokens <= 0:
            break
        chosen.append(place)
        tokens -= len(rows[place].prompt) + len(rows[place].answer)
    return chosen


def batch_shape(spec: RunSpec, world: int) -> BatchShape:
    """How the global batch is cut for `world` workers."""
    micro = spec.train.micro_batch_size or max(1, spec.train.batch_size // world)
    return BatchShape(spec.train.batch_size, micro, world)


def _own_tensors(module: StageModule) -> list[Tensor]:
    """The method's tensors, base weights left out: adapters, gates, prompts."""
    return [p.data for name, p in module.named_parameters() if ".lora_" in name or name.startswith("extra.")]
