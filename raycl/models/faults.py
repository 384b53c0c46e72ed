"""What can be wrong with a base model that loads: each fault in words, with the way out. None of them is left to chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raycl.errors import first_line, some
from raycl.files import Json
from raycl.models.probe import is_random, padding_effect
from raycl.sections import ModelSpec

FELT, FELT_ROUNDED = 0.05, 0.2
"""Effects of padding from which it counts, in fp32 and where arithmetic is coarser. Rounding alone is below 1e-5 in fp32."""


def find_faults(spec: ModelSpec, model: Any, tokenizer: Any, report: Json) -> list[str]:
    """Why a loaded model cannot be trained or scored, one line each; `report` is transformers' account of its weights."""
    faults = [*_weights(report), *_tokens(model, tokenizer)]
    if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        faults.append(
            "model: the decoder's first token is not known; set `decoder_start_token_id` in its config.json "
            "(T5: the padding token's id)"
        )
    if spec.gradient_checkpointing and not model.supports_gradient_checkpointing:
        kind = model.config.model_type
        faults.append(
            f"model.gradient_checkpointing: true, which models of the type {kind} do not offer; set it to false"
        )
    if hasattr(model, "peft_config"):
        faults.append(
            "model: the folder brings an adapter of its own, which would be lost; merge it into the weights (PEFT's "
            "`merge_and_unload`) and save the result to another folder"
        )
    return faults or list(_dropout(spec, model)) or list(_padding(spec, model))


def heal_end_token(config: Any, tokenizer: Any) -> None:
    """Give a tokenizer without an end token the one its model's configuration names, and pad with it if nothing else is
    there to pad with."""
    end = config.get_text_config().eos_token_id
    end = end[0] if isinstance(end, list) and end else end
    if tokenizer.eos_token_id is None and isinstance(end, int) and end < len(tokenizer):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token


def _weights(report: Json) -> Iterator[str]:
    """Tensors that the files lack or hold too many of: tied ones, and those a family is known to leave out, are not."""
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    if missing := sorted({*report["missing_keys"], *mismatched}):
        yield (
            f"model: its files have no weights for {some(missing)}, which would be random; give the complete checkpoint "
            "of this configuration"
        )
    if extra := sorted(report["unexpected_keys"]):
        yield (
            f"model: its files hold weights that its configuration has no place for ({some(extra)}); load it with its own "
            "configuration, or save it again from the class that config.json names"
        )


def _tokens(model: Any, tokenizer: Any) -> Iterator[str]:
    """Special tokens that are not there, and tokens without a row in the embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if not isinstance(tokenizer.eos_token_id, int):
        yield (
            "model: the tokenizer has no end token, so no answer could end; name one as `eos_token` in its "
            "tokenizer_config.json, or as `eos_token_id` in the model's config.json"
        )
    outside = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if outside:
        names = [token for token, _ in sorted(outside.items(), key=lambda pair: pair[1])]
        yield (
            f"model: the tokenizer knows tokens that the embedding of {rows} rows has no row for ({some(names)}); call "
            "`model.resize_token_embeddings(len(tokenizer))` and save both, or take the added tokens out"
        )


def _dropout(spec: ModelSpec, model: Any) -> Iterator[str]:
    """A pass that fails, and dropout that the setting does not reach, in either direction."""
    try:
        random = is_random(model)
    except Exception as error:  # whatever a model raises that wants other inputs than tokens
        yield (
            f"model: a forward pass over a few tokens fails ({type(error).__name__}: {first_line(error)[:200]}); "
            "raycl works with models that read token ids and give logits"
        )
        return
    if random and spec.dropout == 0:
        yield (
            "model.dropout: 0, yet two training passes of the bare model differ: it has randomness of its own that no "
            f"`dropout` in its configuration ({model.config.model_type}) turns off; take it out of config.json"
        )
    if not random and spec.dropout > 0:
        yield f"model.dropout: {spec.dropout} has no effect on a model of the type {model.config.model_type}; set it to 0"


def _padding(spec: ModelSpec, model: Any) -> Iterator[str]:
    """Padding that reaches the tokens beside it: then an answer would depend on what else is in its batch."""
    plain = spec.precision == "fp32" and spec.quantization == "none"
    effect = padding_effect(model)
    if not effect <= (FELT if plain else FELT_ROUNDED):
        yield (
            f"model: padding changes what it makes of the tokens beside it, by {effect:.0%} of the logits' standard "
            f"deviation, so answers would depend on their batch; models of the type {model.config.model_type} do not "
            "heed the attention mask or count positions from the padding; take one of another type"
        )
