"""Small helpers to look at what a method computes and leaves, on a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.adapters.predicting import precision
from raycl.fields import InKeyUnlessDefault
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState
from raycl.train.batches import Encoder
from raycl.train.module import feed


def tensors_of(part: StagePart) -> dict[str, Tensor]:
    """All tensors of a part by name."""
    found = dict(part.tensors)
    if part.branch is not None:
        found |= {f"a {path}": value for path, value in part.branch.a.items()}
        found |= {f"b {path}": value for path, value in part.branch.b.items()}
    return found


def same_part(left: StagePart, right: StagePart) -> bool:
    """Whether two parts agree bit for bit."""
    first, second = tensors_of(left), tensors_of(right)
    return (
        (left.task, left.facts) == (right.task, right.facts)
        and first.keys() == second.keys()
        and all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    )


def make_method(params: dict[str, Any], stage: int = 1, stages: int = 3, seed: int = 0) -> Method:
    """A method object outside of any stage run."""
    checked = method_params(params["name"]).model_validate(params)
    alone = method_class(params["name"]).alone(checked)
    return build(checked, StageInfo(stage, stages, f"toy{stage}", seed, alone))


@contextmanager
def serving(model: Any, params: dict[str, Any], state: StageState) -> Iterator[Method]:
    """A method that serves `state` on the model."""
    method = make_method(params, max(1, state.stage))
    method.serve(model.backbone, state)
    try:
        yield method
    finally:
        method.remove()


def encoder_of(model: Any) -> Encoder:
    """The encoder that the toy stages use."""
    return Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)


def batch_of(model: Any, examples: Any, answers: bool = True) -> Inputs:
    """Examples as one batch."""
    encoder = encoder_of(model)
    return encoder.collate(encoder.encode(examples), "cpu", answers)


@torch.no_grad()
def answer_logits(model: Any, method: Method | None, inputs: Inputs) -> list[Tensor]:
    """Per example, the logits at its real positions: the answer's, or for a decoder-only model all, soft prompt included."""
    backbone = model.backbone
    backbone.model.eval()
    if method is not None:
        method.condition(inputs)
    with precision(backbone):
        fed, mask, _ = feed(backbone, method, inputs)
        extra: dict[str, Any] = {"labels": inputs.labels}
        real = inputs.labels != -100
        if not backbone.encoder_decoder:
            extra, real = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}, mask.bool()
        logits = backbone.model(**fed, use_cache=False, **extra).logits
    return [row[keep].float() for row, keep in zip(logits, real, strict=True)]


def served_logits(model: Any, params: dict[str, Any], state: StageState, examples: Any) -> list[Tensor]:
    """Logits of a served state on examples."""
    with serving(model, params, state) as method:
        return answer_logits(model, method, batch_of(model, examples))


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest absolute difference over two lists of equal shapes."""
    assert [a.shape for a in left] == [b.shape for b in right]
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def probe_logits(model: Any, examples: Any) -> Callable[..., list[Tensor]]:
    """A probe for `run_stage`: the logits of the training module on examples."""
    return lambda module, encoder: answer_logits(model, module.method, batch_of(model, examples))


def labels_of(inputs: Inputs) -> Tensor:
    """The answers of a batch that has some."""
    assert inputs.labels is not None, "a batch without answers"
    return inputs.labels


def padded(inputs: Inputs, pad: int, left: int, right: int) -> Inputs:
    """The same batch with more padding."""

    def widen(tensor: Tensor, value: int) -> Tensor:
        shape = tensor.shape[0]
        return torch.cat([tensor.new_full((shape, left), value), tensor, tensor.new_full((shape, right), value)], dim=1)

    masks = {name: widen(getattr(inputs, name), 0) for name in ("mask", "prompt_mask", "body_mask")}
    labels = labels_of(inputs)
    labels = widen(labels, -100) if labels.shape == inputs.ids.shape else labels
    return replace(inputs, ids=widen(inputs.ids, pad), labels=labels, **masks)


def left_at_default(params: MethodParams) -> set[str]:
    """The fields that keys leave out at their default, and that are at it: older keys were made without them."""
    return {
        name
        for name, info in type(params).model_fields.items()
        if InKeyUnlessDefault() in info.metadata and getattr(params, name) == info.default
    }
