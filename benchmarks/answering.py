"""Three ways to answer the test prompts of a short sequence that was really trained, for the rows on evaluation.

as raycl        labels read behind one pass over the prompts, shared beginnings read once, batches by length
token by token  raycl without that: batches by length, generation up to the task's longest label
as papers       batches in the data's order, padded to their longest, up to 50 tokens, one branch after the other
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import raycl
from raycl.adapters.predicting import precision
from raycl.adapters.stacked_lora import CURRENT, StackedLora, Update
from raycl.files import Json
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build
from raycl.models.load import LoadedModel, load_model
from raycl.sequence.states import States
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task
from raycl.train.generation import Decoder
from raycl.train.module import feed
from raycl.train.workers import Workers
from raycl.use.heads import find_head
from raycl.use.prompts import encoder_of

PAPERS_TOKENS = 50
"""Tokens that the released scripts generate for every prompt that does not end before."""


@dataclass(frozen=True)
class Answering:
    """A trained state on its base model, and the tasks that it has seen."""

    loaded: LoadedModel
    method: Method
    decoder: Decoder
    tasks: Sequence[Task]

    @property
    def prompts(self) -> int:
        """Test prompts of all tasks."""
        return sum(len(task.test) for task in self.tasks)

    def as_raycl(self) -> list[str]:
        """Predictions as they are scored, task by task."""
        return [row["prediction"] for task in self.tasks for row in self.decoder.score(task).predictions]

    def token_by_token(self) -> list[str]:
        """The same without reading labels."""
        encoder = self.decoder.encoder
        return [
            one.text
            for task in self.tasks
            for one in self.decoder.answer(task.test, encoder.generated(task), task.in_chat)
        ]

    @torch.no_grad()
    def as_papers(self) -> list[str]:
        """As the released scripts do."""
        with branch_by_branch(self.loaded.backbone.model):
            return [text for task in self.tasks for text in self._in_order(task)]

    def _in_order(self, task: Task) -> Iterator[str]:
        backbone, encoder = self.loaded.backbone, self.decoder.encoder
        tokenizer: Any = self.loaded.tokenizer
        ends = list(encoder.ends(task.in_chat))
        how = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends}
        size = self.decoder.batch_size
        for first in range(0, len(task.test), size):
            rows = encoder.encode(task.test[first : first + size])
            inputs = encoder.collate(rows, backbone.device, answers=False)
            self.method.condition(inputs)
            fed, _, _ = feed(backbone, self.method, inputs)
            with precision(backbone):
                out = backbone.model.generate(**fed, max_new_tokens=PAPERS_TOKENS, **how)
            new = out if backbone.encoder_decoder else out[:, inputs.ids.shape[1] :]
            yield from (text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True))


@contextmanager
def branch_by_branch(model: Any) -> Iterator[None]:
    """Every branch in two products of its own, its output as wide as the layer's, as long as the context lasts."""
    layers = [module for module in model.modules() if isinstance(module, StackedLora)]
    for layer in layers:
        layer.update = _looped(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.update = None


def _looped(layer: StackedLora) -> Update:
    frozen = layer.frozen_a is not None
    downs = [*(layer.frozen_a.split(layer.frozen_ranks) if frozen else ()), layer.down.to(layer.weight.dtype)]
    ups = [*(layer.frozen_b.split(layer.frozen_ranks, dim=1) if frozen else ())]
    ups.append((layer.up * layer.scaling[CURRENT]).to(layer.weight.dtype))

    def update(x: Tensor) -> Tensor:
        weights = None if layer.mixer is None else layer.mixer(layer, None, x)
        total = x.new_zeros(())
        for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
            wide = F.linear(F.linear(x, down), up)
            total = total + (wide if weights is None else wide * weights[..., index, None].to(wide.dtype))
        return total

    return update


@contextmanager
def answering(
    method: str, precision: str, folder: Path, fields: Json | None = None, tests: int | None = None
) -> Iterator[Answering]:
    """Train the demo's four tasks with a method, or what `fields` of the run spec say otherwise, and serve them.

    `tests` is how many test prompts of each task are answered, none = those that the sequence was scored on.
    """
    common = {
        "order": "demo",
        "method": {"name": method},
        "model": {"precision": precision},
        "data": {"train_examples": 64, "test_examples": 24, "max_source_tokens": 128},
        "eval": {"forward": False, "batch_size": 16},
    }
    spec = raycl.resolve("demo", [common, fields or {}])
    output = str(folder / method)
    raycl.run_sequence(spec, raycl.Options(store=f"{folder}/store", tracking="off", output=output), [])
    head = find_head(output, f"{folder}/store")
    loaded = load_model(head.spec.model, "cpu")
    state = States(head.store, head.spec).of(head.keys(None))
    served = build(head.spec.method, StageInfo(state.stage, len(head.stages), state.newest.task, head.spec.seed))
    served.serve(loaded.backbone, state)
    encoder = encoder_of(head, loaded.tokenizer, loaded.backbone.encoder_decoder)
    try:
        yield Answering(
            loaded,
            served,
            Decoder(loaded, served, encoder, head.spec.eval.batch_size, Workers(device="cpu")),
            load_tasks(head.spec.tasks, head.spec.data.model_copy(update={"test_examples": tests} if tests else {})),
        )
    finally:
        served.remove()
