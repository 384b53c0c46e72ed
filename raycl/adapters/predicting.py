"""What a base model says of answers that are given: one forward pass over a batch with labels.

Decoder-only models read prompt and answer in one row, left-padded, and say the answer's tokens ahead; encoder-decoders read
the prompt, and the answer behind the decoder's first token.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Backbone


def precision(backbone: Backbone, cache: bool = True) -> AbstractContextManager[object]:
    """The autocast context of everything outside the engine: the same arithmetic as inside it.

    Without `cache`, no rounded copies of weights that train are kept as long as an outer context lasts.
    """
    if backbone.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(backbone.device.type, dtype=backbone.dtype, cache_enabled=cache)


def positions(mask: Tensor) -> Tensor:
    """Where each token stands, counted without padding, (B, S); `mask` is 1 on real tokens."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def shifted(model: Any, labels: Tensor) -> Tensor:
    """What a decoder reads while it predicts `labels` (B, L): its first token, and the labels but the last, padded.

    Left to themselves most models do the same; some (mBART) begin with a row's last label, and fail on a row without any.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    start = model.generation_config.decoder_start_token_id if start is None else start
    pad = start if model.config.pad_token_id is None else model.config.pad_token_id
    read = labels.roll(1, dims=1)
    read[:, 0] = start
    return read.masked_fill(read == IGNORE, pad)


def width(labels: Tensor) -> int:
    """Columns of labels (B, S), padded on the left, that hold an answer's token in some row; one at least."""
    return max(1, int((labels != IGNORE).any(dim=0).sum()))


def predicted(backbone: Backbone, fed: Mapping[str, Tensor], mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, L, V), and the labels (B, L) that they predict.

    `fed` are ids or embeddings with their mask, as the model takes them; `mask` and `labels` are of the same batch.
    """
    model: Any = backbone.model
    if backbone.encoder_decoder:
        return model(**fed, decoder_input_ids=shifted(model, labels), use_cache=False).logits, labels
    answer = width(labels)
    keep = {"logits_to_keep": answer + 1} if _keeps_few(type(model)) else {}
    logits = model(**fed, position_ids=positions(mask), use_cache=False, **keep).logits
    return logits[:, -answer - 1 : -1], labels[:, -answer:]


@cache
def _keeps_few(model: type[Any]) -> bool:
    """Whether models of a class make logits for the last tokens alone; asked in every pass, found once."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
