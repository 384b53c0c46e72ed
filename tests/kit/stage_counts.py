"""A method ready to train after some stages, in memory, and a batch for it: what a training step is counted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_params
from raycl.models.counts import Batch
from raycl.state.stage_state import StageState
from raycl.tasks.task import Task
from raycl.testing.tiny import load_tiny
from raycl.testing.toys import make_toy_task, run_sequence_in_memory
from raycl.train.batches import Encoder
from raycl.train.module import StageModule


def installed(folder: Path, method: dict[str, Any], earlier: int) -> tuple[StageModule, Encoder]:
    """The stage module of a method on a tiny model of its own, after `earlier` stages of a step or two, and its encoder."""
    model = load_tiny(folder, "fp32")
    tasks = [make_toy_task(1 + number % 5) for number in range(earlier)]
    done = run_sequence_in_memory(model, method, tasks, batch_size=16) if tasks else []
    state = done[-1].state if done else StageState()
    made = build(method_params(method["name"]).model_validate(method), StageInfo(earlier + 1, earlier + 1, "toy", 0))
    made.install(model.backbone, state)
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    return StageModule(model.backbone, made), encoder


def one_batch(encoder: Encoder, task: Task, rows: int) -> tuple[Inputs, Batch]:
    """The first rows of a task as a batch, and its sizes."""
    encoded = encoder.encode(task.train[:rows])
    inputs = encoder.collate(list(encoded), "cpu")
    answer = max(len(one.answer) for one in encoded)
    return inputs, Batch(rows, inputs.ids.shape[1], answer)
