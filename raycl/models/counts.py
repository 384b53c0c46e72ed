"""Multiply-adds of a base model's forward pass, counted from its modules' shapes: no weights, no run.

Linear modules and attention are counted; normalisation, activations and embeddings are no matrix products.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from raycl.adapters.carriers import carries_branch, widths

ROWS, READ, WRITTEN = 2, 5, 3
"""Rows, and tokens of the source and of the answer, in the pass that tells their modules apart."""
Side = Literal["source", "answer", "head"]


@dataclass(frozen=True)
class Batch:
    """Rows that pass through the model together, padded to the longest."""

    rows: int
    source: int
    """Tokens that the model reads; of a decoder-only model, prompt and answer."""
    answer: int
    """Tokens of the answer, which logits are made for; with the end token."""


@dataclass(frozen=True)
class Products:
    """Multiply-adds of a base model's forward pass. Those of linear modules are their weights, one each for a token."""

    source: int
    """Linear modules for each token that is read: a decoder-only model, or an encoder and the decoder's look at it."""
    answer: int
    """The decoder's beside an encoder, for each token of the answer; 0 for a decoder-only model."""
    head: int
    """The output layer, for each token that is predicted."""
    pairs: int
    """Attention, for each pair of tokens that are read."""
    answer_pairs: int
    """The decoder's beside an encoder, for each pair of answer tokens."""
    cross_pairs: int
    """The same for each pair of an answer token and one that is read."""
    branch: int
    """Widths d_in + d_out of the adapted modules that read `source`: multiply-adds of a branch of rank 1 for a token."""
    answer_branch: int
    layers: int
    """Layers that read `source`."""
    answer_layers: int

    @property
    def all_layers(self) -> int:
        """Both sides'."""
        return self.layers + self.answer_layers

    def forward(self, batch: Batch, ranks: int = 0) -> int:
        """A pass over a batch with branches whose ranks sum up to `ranks`."""
        return self._read(batch, ranks) + self._answered(batch, ranks) + self._predicted(batch) * self.head

    def _read(self, batch: Batch, ranks: int) -> int:
        tokens = batch.rows * batch.source
        return tokens * (self.source + ranks * self.branch + batch.source * self.pairs)

    def _answered(self, batch: Batch, ranks: int) -> int:
        if not self.answer:
            return 0
        attention = batch.answer * self.answer_pairs + batch.source * self.cross_pairs
        return batch.rows * batch.answer * (self.answer + ranks * self.answer_branch + attention)

    def _predicted(self, batch: Batch) -> int:
        """Logits are made for the answer; a decoder-only model also makes those after it."""
        return batch.rows * (batch.answer + (0 if self.answer else 1))

    def own(self, batch: Batch, rank: int | None) -> int:
        """What gradients of trained weights come to: those of one branch, or (none) of all linear modules."""
        read, answered = batch.rows * batch.source, batch.rows * batch.answer
        if rank is None:
            return read * self.source + answered * self.answer + self._predicted(batch) * self.head
        return rank * (read * self.branch + answered * self.answer_branch)


def count(model: Any, config: Any, adapted: Collection[str]) -> Products:
    """Of a model on any device, also the meta device; `adapted` are the paths of its modules that carry branches."""
    linear = {path: module for path, module in model.named_modules() if carries_branch(module)}
    sides = _sides(model, linear)
    weights: dict[Side, int] = dict.fromkeys(("source", "answer", "head"), 0)
    for path, module in linear.items():
        d_in, d_out = widths(module)
        weights[sides[path]] += d_in * d_out
    branches = {
        side: sum(sum(widths(linear[path])) for path in adapted if path in linear and sides[path] == side)
        for side in ("source", "answer")
    }
    text = config.get_text_config()
    both = bool(config.is_encoder_decoder)
    layers = int(text.num_hidden_layers)
    deep = int(getattr(text, "num_decoder_layers", None) or getattr(text, "decoder_layers", 0)) if both else 0
    each = 2 * _attention_width(text)
    return Products(
        **weights,
        pairs=layers * each,
        answer_pairs=deep * each,
        cross_pairs=deep * each,
        branch=branches["source"],
        answer_branch=branches["answer"],
        layers=layers,
        answer_layers=deep,
    )


def _attention_width(text: Any) -> int:
    """Width of all heads' queries together: a query meets a key, and a weight a value, in so many multiply-adds each."""
    heads = int(text.num_attention_heads)
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or int(text.hidden_size) // heads
    return heads * int(width)


def _sides(model: Any, linear: dict[str, Any]) -> dict[str, Side]:
    """Which tokens each linear module reads. Beside an encoder a pass on the meta device tells; what it does not call counts
    as the source's."""
    sides: dict[str, Side] = dict.fromkeys(linear, "source")
    if model.config.is_encoder_decoder:
        sides |= {path: "answer" for path, rows in _rows(model, linear).items() if rows == ROWS * WRITTEN}
    head = model.get_output_embeddings()
    heads: dict[str, Side] = {path: "head" for path, module in linear.items() if module is head}
    return sides | heads


def _rows(model: Any, linear: dict[str, Any]) -> dict[str, int]:
    """Rows that reach each linear module of an encoder-decoder in a short pass."""
    import torch

    seen: dict[str, int] = {}

    def note(path: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            seen[path] = args[0].shape[:-1].numel()

        return hook

    hooks = [module.register_forward_pre_hook(note(path)) for path, module in linear.items()]
    ids = torch.zeros(ROWS, READ, dtype=torch.long, device=model.device)
    try:
        model(input_ids=ids, decoder_input_ids=ids[:, :WRITTEN], use_cache=False)  # a mask's content is not known there
    finally:
        for hook in hooks:
            hook.remove()
    return seen
