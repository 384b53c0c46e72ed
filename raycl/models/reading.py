"""Prompts that are read once: their keys and values are kept, and what may come behind them is read as often as it takes."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.predicting import positions
from raycl.models.probe import PROBE_ANSWER, PROBE_PADDING, probe

FELT, FELT_ROUNDED = 1e-3, 0.2
"""Changes of the logits, in their standard deviations, from which what was kept is not what was read: in fp32, and where
arithmetic is coarser. Rounding alone is below 1e-5 in fp32."""


@dataclass
class Reading:
    """A batch of prompts that a model has read, of an encoder-decoder with the decoder's first token. Nothing is trained."""

    model: Any
    cache: Any
    """transformers' keys and values of what was read."""
    mask: Tensor
    """(B, S): 1 where a real token of the prompt stands."""
    source: Tensor | None = None
    """Of an encoder-decoder: what its encoder says, (B, S, d)."""

    @property
    def tokens(self) -> int:
        """How many tokens of each row were read, padding included."""
        return self.mask.shape[1]

    def follow(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What the model says after each token of `rows`, which stand behind the prompts: logits (B, W, V), fp32.

        W is the longest row; what stands behind the end of a shorter one means nothing. The tokens are forgotten again.
        """
        width = max(map(len, rows))
        filled = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
        ids = torch.tensor(filled, device=self.mask.device)
        out = self.model(**self._fed(ids), past_key_values=self.cache, use_cache=True)
        self.cache.crop(-width)
        return out.logits.float()

    def _fed(self, ids: Tensor) -> dict[str, Any]:
        """The arguments of a pass over tokens behind the prompts."""
        from transformers.modeling_outputs import BaseModelOutput

        if self.source is not None:
            source = BaseModelOutput(last_hidden_state=self.source)  # pyright: ignore[reportArgumentType]
            return {"encoder_outputs": source, "attention_mask": self.mask, "decoder_input_ids": ids}
        mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -ids.shape[1] :]}


def read(model: Any, fed: Mapping[str, Tensor], after: Reading | None = None) -> tuple[Reading, Tensor]:
    """Let a model read a batch; `fed` are its ids or embeddings and their mask, as `generate` takes them.

    `after` is what all of them begin with, one row, read before: `fed` is then the rest of each. Returns what was read, and
    the logits (B, V) of what comes next, fp32.
    """
    if model.config.is_encoder_decoder:
        return _read_both(model, fed)
    mask, rows = fed["attention_mask"], len(fed["attention_mask"])
    if after is None:
        cache, whole = new_cache(model), mask
    else:
        cache, whole = copy.deepcopy(after.cache), torch.cat([after.mask.expand(rows, -1), mask], dim=1)
        cache.batch_repeat_interleave(rows)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    places = positions(whole)[:, -mask.shape[1] :]
    given: dict[str, Any] = {**fed, "attention_mask": whole, "position_ids": places, **last}
    out = model(**given, past_key_values=cache, use_cache=True)
    return Reading(model, cache, whole), out.logits[:, -1].float()


def _read_both(model: Any, fed: Mapping[str, Tensor]) -> tuple[Reading, Tensor]:
    mask = fed["attention_mask"]
    start = mask.new_full((len(mask), 1), model.generation_config.decoder_start_token_id)
    cache = new_cache(model)
    out = model(**fed, decoder_input_ids=start, past_key_values=cache, use_cache=True)
    return Reading(model, cache, mask, out.encoder_last_hidden_state), out.logits[:, -1].float()


def new_cache(model: Any) -> Any:
    """An empty place for keys and values."""
    from transformers import DynamicCache, EncoderDecoderCache

    own = DynamicCache(config=model.config)
    return EncoderDecoderCache(own, DynamicCache(config=model.config)) if model.config.is_encoder_decoder else own


@torch.no_grad()
def longest_reading(model: Any, exact: bool) -> int:
    """Tokens, prompt and what follows, up to which a `Reading` says what the model says; 0 = it does not.

    Found out by a short pass, `exact` says whether arithmetic is fp32: models that keep a state, or that see a window only,
    or that count positions in their own way, differ in what can be kept.
    """
    try:
        cache = new_cache(model)
        layers = getattr(cache, "self_attention_cache", cache).layers
        windows = [layer.sliding_window for layer in layers if layer.is_sliding]
        longest = min(windows, default=sys.maxsize) - 1
        needed = 2 * len(_ids(model)) + PROBE_PADDING + PROBE_ANSWER
        if not getattr(cache, "is_croppable", True) or longest < needed:
            return 0
        effect = _effect(model)
    except Exception:  # whatever a model raises that has caches of its own kind
        return 0
    return longest if effect <= (FELT if exact else FELT_ROUNDED) else 0


def _ids(model: Any) -> list[int]:
    return probe(model)["input_ids"][0].tolist()


def _effect(model: Any) -> float:
    """How far the logits behind a kept prompt, shared or not, padded or not, are from those of one pass over all of it: the
    largest root mean square of a change, over the logits' standard deviation."""
    ids, decoder = _ids(model), not model.config.is_encoder_decoder
    own, behind = [ids, ids[PROBE_PADDING:]], [ids[:PROBE_ANSWER], ids[1:3]]
    shared = read(model, _padded(model, [ids]))[0] if decoder else None
    changes = []
    for after in (None, shared) if shared else (None,):
        reading, first = read(model, _padded(model, own), after)
        said = reading.follow(behind)
        changes.append(_change(reading.follow(behind), said))
        for row, (prompt, then) in enumerate(zip(own, behind, strict=True)):
            found = torch.cat([first[row][None], said[row, : len(then)]])
            changes.append(_change(found, _whole(model, [*(ids if after else []), *prompt], then)))
    return max(changes)


def _change(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def _padded(model: Any, rows: Sequence[list[int]]) -> dict[str, Tensor]:
    """Ids and mask of a batch, padded on the side where raycl pads."""
    width, decoder = max(map(len, rows)), not model.config.is_encoder_decoder

    def whole(row: list[int]) -> list[int]:
        pad = [0] * (width - len(row))
        return pad + row if decoder else row + pad

    like: dict[str, Any] = {"device": model.device}
    marks = [whole([1] * len(row)) for row in rows]
    return {
        "input_ids": torch.tensor([whole(row) for row in rows], **like),
        "attention_mask": torch.tensor(marks, **like),
    }


def _whole(model: Any, prompt: list[int], behind: list[int]) -> Tensor:
    """The logits after a prompt and after each token behind it, by one pass over all, (1 + W, V)."""
    if model.config.is_encoder_decoder:
        start = model.generation_config.decoder_start_token_id
        fed = {"input_ids": prompt, "decoder_input_ids": [start, *behind]}
    else:
        fed = {"input_ids": [*prompt, *behind]}
    given = {name: torch.tensor([ids], device=model.device) for name, ids in fed.items()}
    mask = torch.ones_like(given["input_ids"])
    return model(**given, attention_mask=mask, use_cache=False).logits[0, -len(behind) - 1 :].float()
