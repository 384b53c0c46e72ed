"""Scoring: greedy generation of every test answer, shared out over the workers, and the task's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raycl.methods.base import Method
from raycl.models import LoadedModel
from raycl.tasks.scoring import score
from raycl.tasks.task import Task
from raycl.train.batches import Encoder, by_length
from raycl.train.module import precision
from raycl.train.workers import Workers


@dataclass(frozen=True)
class Scored:
    """One cell of the accuracy matrix with the predictions behind it."""

    score: float
    """0 to 100."""
    predictions: list[dict[str, object]]
    """Per test example, in order: id, prediction, answers."""


def score_task(
    model: LoadedModel, method: Method | None, encoder: Encoder, task: Task, batch_size: int, workers: Workers
) -> Scored:
    """Score a served method (or, with none, the base model) on a task's test split.

    Decoding is greedy and stops at the end token, or after the longest label of the task.
    """
    length = encoder.longest_answer(task.labels) if task.labels else encoder.max_target
    mine = task.test[workers.rank :: workers.world]
    texts = _generate(model, method, encoder, mine, min(length, encoder.max_target), batch_size)
    shards = workers.gather(texts)
    predictions = [""] * len(task.test)
    for rank, shard in enumerate(shards):
        predictions[rank :: workers.world] = shard
    rows = [
        {"id": example.id, "prediction": text, "answers": list(example.answers)}
        for example, text in zip(task.test, predictions, strict=True)
    ]
    return Scored(score(task.metric, predictions, task.test), rows)


@torch.no_grad()
def _generate(
    model: LoadedModel, method: Method | None, encoder: Encoder, examples: Sequence, length: int, batch_size: int
) -> list[str]:
    """Greedy continuations of the examples' prompts, in order, at most `length` tokens each."""
    tokenizer, backbone = model.tokenizer, model.backbone
    encoded = encoder.encode(examples)
    texts = [""] * len(encoded)
    backbone.model.eval()
    with precision(backbone):
        for batch in by_length(encoded, batch_size):
            inputs = encoder.collate([encoded[i] for i in batch], backbone.device, answers=False)
            if method is not None:
                method.condition(inputs)
            out = backbone.model.generate(
                input_ids=inputs.ids,
                attention_mask=inputs.mask,
                max_new_tokens=length,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            new = out if backbone.encoder_decoder else out[:, inputs.ids.shape[1] :]
            for index, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[index] = text.strip()
    return texts
