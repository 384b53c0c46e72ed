"""What adapters and methods see of a base model and of a batch: torch only, no tokenizer, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

        def get_encoder(self) -> nn.Module:
            """The encoder of an encoder-decoder."""
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
    body_mask: Tensor | None = None
    """(B, S): 1 on the prompt's tokens that the example's body has a part in, without instruction and answer cue; none =
    no row says where its body stands."""

    @property
    def text_mask(self) -> Tensor:
        """(B, S): 1 on the body's tokens; on the whole prompt's where a row has no body."""
        if self.body_mask is None:
            return self.prompt_mask
        return torch.where(self.body_mask.any(dim=1, keepdim=True), self.body_mask, self.prompt_mask)

    def rows(self, index: Tensor | slice) -> Inputs:
        """Some rows of the batch, by index (n,) or those of a slice; their padding stays."""
        return replace(self, **{name: value[index] for name, value in vars(self).items() if value is not None})

    def region_mask(self, region: Region) -> Tensor:
        """(B, tokens): which positions of a layer's input are real, for layers that read `region`."""
        if region == "source":
            return self.mask.bool()
        if self.labels is None:
            raise ValueError("target positions are only known for a batch with labels")
        return self.labels != IGNORE

    def real(self, features: Tensor, region: Region) -> Tensor:
        """Which rows of what a layer reads or writes stand for real tokens: bool, the shape of `features` but the last.

        `features` is (B, tokens, d), or flattened to (B tokens, d). A layer that sees the last positions only, as the output
        head does, is met on the right. Raises ValueError for any other shape.
        """
        return self.fitted(self.region_mask(region), features)

    def fitted(self, mask: Tensor, features: Tensor) -> Tensor:
        """A mask (B, tokens) in the shape of the rows of `features`; see `real`."""
        rows = features.shape[:-1]
        if len(rows) == 2 and rows[0] == mask.shape[0] and rows[1] <= mask.shape[1]:
            return mask[:, mask.shape[1] - rows[1] :]
        if rows.numel() != mask.numel():
            raise ValueError(
                f"a layer's features are {tuple(features.shape)}, for a batch of {tuple(mask.shape)} tokens"
            )
        return mask.reshape(rows)


@dataclass(frozen=True)
class Backbone:
    """A frozen base model and the little that methods must know about it."""

    model: LanguageModel
    targets: tuple[str, ...]
    """The linear modules that get adapters by default, by the last part of their paths or by whole paths; none where no
    attention was found in the model."""
    encoder_decoder: bool
    width: int
    """Width d of the token embeddings."""
    regions: Mapping[str, Region | None] = field(default_factory=dict, repr=False)
    """The linear modules that a forward pass calls, by path, and which tokens they read; none = neither as they stand."""
    readable: int = 0
    """Tokens, prompt and answer, up to which a prompt can be read once and continued (`raycl.models.reading`); 0 = not."""
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

        Raises ValueError for a module of an encoder-decoder that reads neither in every pass.
        """
        if not self.encoder_decoder:
            return "source"
        region = self.regions.get(path)
        if region is None:
            raise ValueError(f"{path}: reads neither the source's tokens nor the answer's; adapt other modules")
        return region
