"""Scoring: greedy generation of every test answer, shared out over the workers, and the task's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raycl.methods.common.base import Method, Sampling
from raycl.models.load import LoadedModel
from raycl.tasks.scoring import score
from raycl.tasks.task import Task
from raycl.train.batches import Encoded, Encoder, by_length
from raycl.train.module import feed, precision
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
    most = min(length, encoder.max_target)
    texts = _generate(model, method, encoder, encoder.encode(mine), most, batch_size, {"do_sample": False})
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
    model: LoadedModel,
    method: Method | None,
    encoder: Encoder,
    encoded: Sequence[Encoded],
    length: int,
    batch_size: int,
    how: dict[str, Any],
) -> list[str]:
    """Continuations of the prompts, in order, at most `length` tokens each; `how` goes to `generate`."""
    tokenizer, backbone = model.tokenizer, model.backbone
    texts = [""] * len(encoded)
    backbone.model.eval()
    with precision(backbone):
        for batch in by_length(encoded, batch_size):
            inputs = encoder.collate([encoded[i] for i in batch], backbone.device, answers=False)
            if method is not None:
                method.condition(inputs)
            fed, _, _ = feed(backbone, method, inputs)
            out = backbone.model.generate(
                **fed,
                max_new_tokens=length,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **how,
            )
            # Given embeddings, or an encoder's input, `generate` returns the continuation alone.
            new = out[:, inputs.ids.shape[1] :] if "input_ids" in fed and not backbone.encoder_decoder else out
            for index, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[index] = text.strip()
    return texts


def write_texts(
    model: LoadedModel,
    method: Method,
    encoder: Encoder,
    batch_size: int,
    workers: Workers,
    prompts: Sequence[str],
    sampling: Sampling,
    generator: torch.Generator,
) -> list[str]:
    """Continuations of raw prompts by the method as it is installed (see `raycl.methods.common.base.Write`).

    Every worker writes all of them with the same draws, so that what is made up does not depend on their number.
    """
    how: dict[str, Any] = {"do_sample": False}
    if sampling.top_k:
        how = {"do_sample": True, "top_k": sampling.top_k, "top_p": 1.0, "temperature": 1.0}
    how["repetition_penalty"] = sampling.repetition_penalty
    encoded = [Encoded(tuple(model.tokenizer(prompt).input_ids), ()) for prompt in prompts]
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        texts = _generate(model, method, encoder, encoded, sampling.tokens, batch_size, how)
    return workers.gather(texts)[0]
