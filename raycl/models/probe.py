"""What a base model does, found out by a short pass and not by the names of its parts: its own randomness in training, and
which of its linear modules read the source and which the answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Region
from raycl.adapters.carriers import carries_branch
from raycl.adapters.predicting import positions

PROBE = 6
"""Tokens of the probe; an encoder-decoder's answer is shorter, so that its layers can be told apart."""
PROBE_ANSWER = 4
PROBE_PADDING = 3
ALWAYS_OFF = ("layer", "path", "connect", "jitter")
"""Parts of the names of settings that drop whole layers or shake a router: `model.dropout` does not mean those."""


def set_dropout(config: Any, share: float) -> dict[str, float]:
    """Set every dropout in a configuration and the configurations inside it to `share`; layers are never dropped.

    Returns what was set, by name. A setting is known by its name, which misses some: `is_random` has the last word.
    """
    settings: dict[str, float] = {}
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            inner = set_dropout(value, share)
            settings |= {f"{name}.{key}": one for key, one in inner.items()}
        elif ("drop" in name or "jitter" in name) and isinstance(value, int | float) and not isinstance(value, bool):
            wanted = 0.0 if any(part in name for part in ALWAYS_OFF) else share
            if value != wanted:  # some configurations take no 0.0 for their 0
                setattr(config, name, wanted)
            settings[name] = wanted
    return settings


@torch.no_grad()
def is_random(model: Any) -> bool:
    """Whether two training passes of the bare model over the same tokens differ by more than two passes in eval mode do.

    The generators of this process stay as they were, and the model is in eval mode afterwards.
    """
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices, device_type=model.device.type if devices else "cuda"):
        one, two = (_pass(model.train(), seed) for seed in (1, 2))
        three, four = (_pass(model.eval(), seed) for seed in (1, 2))
    return bool((one - two).abs().max() > (three - four).abs().max())


def _pass(model: Any, seed: int) -> Tensor:
    """The logits of the probe."""
    torch.manual_seed(seed)
    return model(**probe(model), use_cache=False).logits.float()


def probe(model: Any) -> dict[str, Tensor]:
    """A short input for any model: the first tokens of its vocabulary."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(PROBE, device=model.device) % rows)[None]
    fed = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return fed | ({"decoder_input_ids": ids[:, :PROBE_ANSWER]} if model.config.is_encoder_decoder else {})


@torch.no_grad()
def padding_effect(model: Any) -> float:
    """How far padding moves the logits of the tokens beside it, padded as in training: the root mean square of the change,
    over the logits' standard deviation."""
    fed = probe(model)
    ids, mask, decoder = fed["input_ids"], fed["attention_mask"], not model.config.is_encoder_decoder
    filler = ids[:, :PROBE_PADDING]
    pair = (lambda pad, own: torch.cat([pad, own], 1)) if decoder else (lambda pad, own: torch.cat([own, pad], 1))
    padded = fed | {"input_ids": pair(filler, ids), "attention_mask": pair(torch.zeros_like(filler), mask)}
    if decoder:
        padded["position_ids"] = positions(padded["attention_mask"])
    alone, beside = (model.eval()(**one, use_cache=False).logits.float() for one in (fed, padded))
    return float((beside[:, -alone.shape[1] :] - alone).pow(2).mean().sqrt() / alone.std())


@torch.no_grad()
def regions(model: Any) -> dict[str, Region | None]:
    """For each linear module that a pass calls, by its path: whether it reads the source or, in a decoder, the answer;
    none where it reads neither as it stands (an encoder that pads for its own sake, say)."""
    meaning: dict[int, Region] = {PROBE: "source", PROBE_ANSWER: "target"}
    seen: dict[str, set[Region | None]] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(path, set()).add(meaning.get(args[0].shape[:-1].numel()) if args else None)

        return hook

    named = [(path, module) for path, module in model.named_modules() if carries_branch(module)]
    hooks = [module.register_forward_pre_hook(note(path)) for path, module in named]
    try:
        model.eval()(**probe(model), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: next(iter(found)) if len(found) == 1 else None for path, found in seen.items()}
