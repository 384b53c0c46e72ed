"""What benchmarks of single training steps share: random batches, several methods on one set of weights, and calls timed in
turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Backbone, Inputs
from raycl.adapters.predicting import precision
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.common.base import Step as TrainingPass
from raycl.methods.registry import build, method_params
from raycl.sections import TrainSpec
from raycl.state.stage_state import StageState
from raycl.train.engine import BatchShape, Work, make_engine
from raycl.train.module import StageModule
from raycl.train.workers import Workers


@dataclass(frozen=True)
class Sizes:
    """A batch: rows, and tokens of each prompt and of each answer."""

    rows: int = 8
    tokens: int = 128
    answer: int = 4


SIZES = Sizes()
"""What steps are measured on, unless something else is said."""


def method_of(name: str, rank: int = 8, stage: int = 2) -> Method:
    """A method with its default settings but the rank, as it is at `stage`."""
    params = method_params(name).model_validate({"name": name, "rank": rank})
    return build(params, StageInfo(stage, max(stage, 2), "new", 0))


def twin(backbone: Backbone) -> Backbone:
    """The same weights in modules of their own: what is put on one twin is not on the other."""
    shared = [*backbone.model.parameters(), *backbone.model.buffers()]
    return replace(backbone, model=copy.deepcopy(backbone.model, {id(one): one for one in shared}))


def batch(backbone: Backbone, sizes: Sizes, answers: bool = True) -> Inputs:
    """Random prompts, with answers (behind them, or of an encoder-decoder as labels) or alone."""
    draw = torch.Generator().manual_seed(1)
    words = backbone.model.get_input_embeddings().weight.shape[0]
    behind = sizes.answer if answers and not backbone.encoder_decoder else 0
    ids = torch.randint(words // 10, words, (sizes.rows, sizes.tokens + behind), generator=draw).to(backbone.device)
    prompt = torch.zeros_like(ids)
    prompt[:, : sizes.tokens] = 1
    labels = None
    if answers:
        labels = ids[:, -sizes.answer :] if backbone.encoder_decoder else torch.where(prompt.bool(), IGNORE, ids)
    return Inputs(ids, torch.ones_like(ids), prompt, labels)


class TrainingStep:
    """A method on a backbone, ready to take the same training step again and again, as a stage takes it."""

    def __init__(self, backbone: Backbone, method: Method, state: StageState, inputs: Inputs) -> None:
        """Raises ValueError for a batch without answers."""
        if inputs.labels is None:
            raise ValueError("a training step needs a batch with answers")
        self.backbone, self.method, self.inputs = backbone, method, inputs
        method.install(backbone, state)
        self.module = StageModule(backbone, method)
        shape = BatchShape(len(inputs.ids), len(inputs.ids), 1)
        workers = Workers(device=backbone.device.type)
        train = TrainSpec(batch_size=len(inputs.ids), engine="torch")
        self.engine = make_engine(Work(self.module, train, shape, backbone.dtype == torch.bfloat16, workers))
        self.engine.train(True)
        self._tokens = int((inputs.labels != IGNORE).sum())
        self._sum = workers.sum

    def __call__(self) -> None:
        """Forward pass, penalties, backward pass, clipping, AdamW."""
        loss = self.loss()
        self.engine.backward(loss)
        self.engine.step(1e-4)

    def loss(self) -> Tensor:
        """The forward pass and the penalties: what the backward pass begins with."""
        seen = self.forward()
        return seen.loss + sum(term.raw * term.weight for term in self.method.penalties(seen).values())

    def forward(self) -> TrainingPass:
        """The forward pass alone, as penalties see it."""
        summed, logits, labels = self.engine.loss(self.inputs)
        rows = float(len(self.inputs.ids))
        loss = summed / self._tokens
        return TrainingPass(self.inputs, logits, labels, loss, 0.5, self._again, self._sum, self._tokens, rows)

    def _again(self, inputs: Inputs) -> Tensor:
        with precision(self.backbone):
            return self.module.predict(inputs)[0]


@dataclass(frozen=True)
class Clock:
    """How a call is timed: by the wall, on a GPU until it has done all of it; or in CPU seconds of this process. With one
    thread these are the same on a quiet machine, and they leave out the time in which other processes had the cores."""

    device: str = "cpu"
    busy: bool = False
    """In CPU seconds."""

    def __call__(self, call: Callable[[], object]) -> float:
        """Seconds that a call takes."""
        started = self._now()
        call()
        return self._now() - started

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.busy else time.perf_counter()


WALL = Clock()


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = WALL) -> dict[str, list[float]]:
    """Seconds of every call in each of the rounds, by name, after one round that does not count.

    Every round begins with another call, so that none always runs behind the same one.
    """
    names = list(calls)
    for name in names:
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            seconds[name].append(clock(calls[name]))
    return seconds


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows a whole round down is not in it."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))
