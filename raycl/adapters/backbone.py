"""What adapters and methods see of a base model and of a batch: torch only, no tokenizer, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:

    class LanguageModel(nn.Module):
        """What is used of a model that transformers loaded."""

        def get_input_embeddings(self) -> nn.Embedding:
            """The table of token embeddings."""
            ...

        def get_output_embeddings(self) -> nn.Module | None:
            """The output head, if the model has one."""
            ...

        def generate(self, **how: Any) -> Tensor:
            """Token ids of the continuations."""
            ...


Region = Literal["source", "target"]
IGNORE = -100
"""The label where there is no answer token; the cross-entropy leaves it out."""


@dataclass(frozen=True)
class Inputs:
    """One batch on the model's device. B examples, S source tokens, L answer tokens.

    Encoder-decoder: `ids` is the prompt, `labels` (B, L) the answer. Decoder-only: `ids` is prompt and answer, left-padded,
    and `labels` (B, S) is -100 outside the answer. Without `labels` only the prompt is there (generation).
    """

    ids: Tensor
    mask: Tensor
    """(B, S): 1 where a real token stands."""
    prompt_mask: Tensor
    """(B, S): 1 on the tokens of the prompt, 0 on padding and on the answer."""
    labels: Tensor | None = None
    stages: Tensor | None = None
    """(B,): the stage (1-based) whose task each row belongs to; none = all rows are the current task's own."""
    weights: Tensor | None = None
    """(B,): weight of each row in the cross-entropy; none = 1 for all."""

    def region_mask(self, region: Region) -> Tensor:
        """(B, tokens): which positions of a layer's input are real, for layers that read `region`."""
        if region == "source":
            return self.mask.bool()
        if self.labels is None:
            raise ValueError("target positions are only known for a batch with labels")
        return self.labels != IGNORE


@dataclass(frozen=True)
class Backbone:
    """A frozen base model and the little that methods must know about it."""

    model: LanguageModel
    targets: tuple[str, ...]
    """Names of the linear modules that get adapters by default (last part of the module path)."""
    encoder_decoder: bool
    width: int
    """Width d of the token embeddings."""
    dtype: torch.dtype = torch.float32
    """What matrix products are computed in: fp32, or bf16 under autocast."""

    @property
    def device(self) -> torch.device:
        """The device of the embedding table, where batches must be."""
        return self.model.get_input_embeddings().weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (B, S, d), before any dropout or layer."""
        return self.model.get_input_embeddings()(ids)

    def region(self, path: str) -> Region:
        """Whether the linear module at `path` reads source tokens or the decoder's answer tokens.

        In an encoder-decoder the keys and values of cross-attention read the encoder's output, its queries the decoder.
        """
        if not self.encoder_decoder or "decoder." not in path:
            return "source"
        return "source" if "EncDecAttention" in path and path.rsplit(".", 1)[-1] in ("k", "v") else "target"
