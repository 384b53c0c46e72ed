"""What a training step and a stage do, counted and not timed: matrix products, passes of the base model, tensors that are
kept for the way back, and times that the host waits for a number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raycl.models.load import LoadedModel
from raycl.testing.toys import make_toy_task, run_stage_in_memory
from raycl.train.loop import TrainLoop

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "linear"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select"}
"""Operations for which the host must know a number that is on the device."""
COUNTED = 2
"""The step of a stage that is counted: neither its first nor its last, which are logged."""
STEPS = 3


@dataclass
class StepCount:
    """One training step: one micro-batch and the optimizer's update."""

    products: int = 0
    waits: int = 0
    passes: int = 0
    """Forward passes of the base model."""
    kept: set[int] = field(default_factory=set)
    """Tensors with a value for every token of the batch that are kept for the way back, by where they lie."""
    widest: int = 0
    """Numbers for each token in the widest of them."""


@dataclass(frozen=True)
class StageCount:
    """One stage."""

    step: StepCount
    """Its second training step."""
    passes: int
    """Forward passes of the base model outside of training, for each batch of rows."""


class _Operations(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self, count: StepCount) -> None:
        super().__init__()
        self.count, self.paused = count, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count.products += name in PRODUCTS
        self.count.waits += (name in WAITS or _by_mask(name, args)) and not self.paused
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: Any) -> bool:
    """Whether entries are picked by a mask, whose length the host must know."""
    picked = args[1] if name in ("index", "index_put", "index_put_") else ()
    return any(one is not None and one.dtype == torch.bool for one in picked)


class _Lists(TorchFunctionMode):
    """Counts tensors that are read out as lists, which no operation tells."""

    def __init__(self, count: StepCount) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.waits += func is Tensor.tolist
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(count: StepCount, rows: int, tokens: int) -> Iterator[None]:
    """Count until the end; the optimizer's own numbers, which lie with the host, are no waits."""

    def keep(tensor: Tensor) -> Tensor:
        each, rest = divmod(tensor.numel(), rows * tokens)
        if (
            tensor.is_floating_point()
            and tensor.dim() >= 2
            and rest == 0
            and tensor.shape[-2] in (tokens, rows * tokens)
        ):
            count.kept.add(tensor.data_ptr())
            count.widest = max(count.widest, each)
        return tensor

    operations = _Operations(count)
    pause = register_optimizer_step_pre_hook(lambda *_: setattr(operations, "paused", True))
    resume = register_optimizer_step_post_hook(lambda *_: setattr(operations, "paused", False))
    try:
        with operations, _Lists(count), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
    finally:
        pause.remove()
        resume.remove()


def count_stages(model: LoadedModel, method: dict[str, Any], stages: int) -> dict[int, StageCount]:
    """Stage -> its counts, of a sequence of stages of three steps of eight rows each."""
    tasks = [replace(make_toy_task(1 + number % 5, repeats=2 * STEPS), name=f"toy{number}") for number in range(stages)]
    found: dict[int, StageCount] = {}
    state = None
    for stage in range(1, stages + 1):
        with pytest.MonkeyPatch.context() as patch:
            watch = _Watch(model)
            patch.setattr(TrainLoop, "train_step", watch.wrapped(TrainLoop.train_step))
            with watch:
                state = run_stage_in_memory(
                    model, method, tasks, state, batch_size=8, epochs=1, log_every=100, lr=1e-3
                ).state
        found[stage] = StageCount(watch.count, watch.outside)
    return found


class _Watch:
    """Counts one stage."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.count = model, StepCount()
        self.outside, self.inside, self.steps = 0, False, 0

    def __enter__(self) -> None:
        self.hook = self.model.backbone.model.register_forward_pre_hook(self._passed)

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _passed(self, *_: object) -> None:
        self.outside += not self.inside
        self.count.passes += self.inside and self.steps == COUNTED

    def wrapped(self, step: Any) -> Any:
        """`train_step`, counted when it is the second one."""

        def train_step(loop: TrainLoop, micro_batches: list[Any]) -> None:
            self.steps += 1
            self.inside = True
            if self.steps == COUNTED:
                ids = loop.encoder.collate(micro_batches[0].rows, "cpu").ids
                with counting(self.count, *ids.shape):
                    step(loop, micro_batches)
            else:
                step(loop, micro_batches)
            self.inside = False

        return train_step
