"""SAPT's routing (arXiv 2401.08295): a shared query net and one key per task weigh the branches, once per input.

    q = LayerNorm(SiLU(Q_2 Q_1 p)),   a = softmax(K q / sqrt(d)),   p = max over the prompt's token embeddings

p, q in R^d; Q_1 (h, d), Q_2 (d, h) without bias; K (T, d) holds the keys of tasks 1..T. Everything is fp32, autocast off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.branches import kaiming


class Router(nn.Module):
    """The query net and all keys; only the newest key is a parameter."""

    old_keys: Tensor | None

    def __init__(self, query: Mapping[str, Tensor], old_keys: Tensor | None, key: Tensor, train: bool) -> None:
        """`query` names the net's tensors as `query()` does; old keys (T-1, d) or none, the newest key (1, d)."""
        super().__init__()
        hidden, width = query["down.weight"].shape
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.load_state_dict(dict(query), strict=True)
        self.key = nn.Parameter(key.float().clone())
        self.register_buffer("old_keys", None if old_keys is None else old_keys.float().clone(), persistent=False)
        self.requires_grad_(train)

    def forward(self, pooled: Tensor) -> Tensor:
        """log a (B, T), oldest task first, from p (B, d)."""
        with torch.autocast(pooled.device.type, enabled=False):
            query = self.norm(F.silu(self.up(self.down(pooled.float()))))
            keys = self.key if self.old_keys is None else torch.cat([self.old_keys, self.key])
            return F.log_softmax(query @ keys.T / math.sqrt(keys.shape[1]), dim=-1)

    def query(self) -> dict[str, Tensor]:
        """Copies of the query net's tensors, fp32 on the CPU."""
        own = {name: value for name, value in self.named_parameters() if name != "key"}
        return {name: value.detach().to("cpu", torch.float32, copy=True).contiguous() for name, value in own.items()}


def fresh_query(width: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A query net as torch starts it: Kaiming-uniform linears, a LayerNorm that only normalises."""
    return {
        "down.weight": kaiming((hidden, width), generator),
        "up.weight": kaiming((width, hidden), generator),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }


def fresh_key(width: int, generator: torch.Generator) -> Tensor:
    """A key uniform in (-1, 1), shape (1, d)."""
    return torch.rand(1, width, generator=generator) * 2 - 1
