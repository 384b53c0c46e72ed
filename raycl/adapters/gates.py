"""GainLoRA's gates (arXiv 2505.15424): how strongly each branch acts on an input.

    p_0 = mean of the prompt's token embeddings, or that mean scaled to RMS 1
    p_l = SiLU(G_l p_(l-1)), l = 1..L;  a = f(score(p_L, k))

with f(0) = 0, so that a new gate is closed on whatever its key k is orthogonal to. Everything is fp32, autocast off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.constrained import ConstrainedLinear, FixedLinear

Score = Literal["cosine", "dot"]
Squash = Literal["abs_tanh", "clipped_abs", "abs_sin", "sigmoid"]
Pooling = Literal["mean_tokens", "mean_padded", "max"]

GateInput = Literal["auto", "raw", "rms"]

GateLinear = ConstrainedLinear | FixedLinear

COSINE_SCALE = 4.0
"""The released code's factor on the cosine before squashing; a <= tanh(2) = 0.9640."""


def pool(embeddings: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """p_0 (B, d) from embeddings (B, S, d) over the tokens where mask (B, S) is 1.

    `mean_tokens` divides by the number of real tokens and so does not depend on padding; `mean_padded` divides by S, as
    the released code does, and does depend on it.
    """
    keep = mask[..., None].float()
    embeddings = embeddings.float()
    if how == "max":
        return embeddings.masked_fill(keep == 0, -torch.inf).amax(dim=1)
    total = (embeddings * keep).sum(dim=1)
    return total / (keep.sum(dim=1).clamp(min=1) if how == "mean_tokens" else embeddings.shape[1])


def unit_rms(pooled: Tensor) -> Tensor:
    """p_0 (B, d) with each row scaled to a root mean square of 1, where SiLU bends; a row of zeros stays 0.

    Token embeddings of Llama-like models have an RMS of about 0.03 (T5: about 1). There SiLU is a straight line, features of
    different inputs stay as alike as their prompts' words, and a new gate finds little room outside the old ones' span. The
    scale is a function of the input alone, so what holds for gates on p_0 holds for gates on this
    (and `mean_padded` no longer depends on padding).
    """
    return pooled / pooled.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


def score(features: Tensor, key: Tensor, how: Score) -> Tensor:
    """b (B,) of p_L (B, d) against k (1, d): 4 cos(p_L, k), or the dot product."""
    product = (features @ key.T)[:, 0]
    if how == "dot":
        return product
    return COSINE_SCALE * product / (features.norm(dim=1).clamp(min=1e-6) * key.norm().clamp(min=1e-6))


def squash(value: Tensor, how: Squash) -> Tensor:
    """f: abs_tanh |2 sigmoid(b) - 1|, clipped_abs min(|b|, 1), abs_sin |sin(pi b / 2)|; all have f(0) = 0.

    `sigmoid` does not (f(0) = 0.5): it is the negative control of the zero-gate guarantee.
    """
    if how == "abs_tanh":
        return (2 * torch.sigmoid(value) - 1).abs()
    if how == "clipped_abs":
        return value.abs().clamp(max=1)
    if how == "abs_sin":
        return torch.sin(torch.pi * value / 2).abs()
    return torch.sigmoid(value)


class Gate(nn.Module):
    """One task's gate: layers G_1..G_L and the key k."""

    def __init__(self, layers: Sequence[GateLinear], key: GateLinear, how: Score, f: Squash) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.key = key
        self.how: Score = how
        self.f: Squash = f

    def features(self, pooled: Tensor) -> list[Tensor]:
        """p_0..p_L, each (B, width)."""
        with torch.autocast(pooled.device.type, enabled=False):
            features = [pooled.float()]
            for layer in self.layers:
                features.append(F.silu(layer(features[-1])))
            return features

    def forward(self, pooled: Tensor) -> Tensor:
        """a (B,) from p_0 (B, d)."""
        last = self.features(pooled)[-1]
        with torch.autocast(pooled.device.type, enabled=False):
            return squash(score(last, self.key(), self.how), self.f)

    def values(self) -> list[Tensor]:
        """The effective weights G_1..G_L, k as fp32 CPU copies."""
        return [m().detach().cpu().clone().contiguous() for m in (*self.layers, self.key)]


def frozen_gate(weights: Sequence[Tensor], how: Score, f: Squash) -> Gate:
    """A gate that will not change, from its effective weights G_1..G_L, k."""
    modules = [FixedLinear(weight) for weight in weights]
    return Gate(modules[:-1], modules[-1], how, f)
