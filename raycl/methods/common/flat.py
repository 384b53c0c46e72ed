"""All that trains as one vector, for methods that project gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from raycl.methods.common.base import Gradients


class Flat:
    """Weights in a fixed order, P numbers in all. Their shapes are noted once, before an engine may take them apart."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = dict(weights)
        self.shapes = {name: weight.shape for name, weight in weights.items()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        """P."""

    def values(self) -> Tensor:
        """A copy of the weights, (P,)."""
        return torch.cat([weight.detach().flatten() for weight in self.weights.values()])

    def gradient(self, read: Callable[[nn.Parameter], Tensor | None]) -> Tensor:
        """The gradient (P,), read weight by weight; none is one of zeros."""
        return self.joined([read(weight) for weight in self.weights.values()])

    def joined(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Gradients in the order of the weights as one vector (P,), fp32; none is one of zeros."""
        pairs = zip(self.weights.items(), gradients, strict=True)
        flat = [self._zeros(name, weight) if one is None else one.detach().float() for (name, weight), one in pairs]
        return torch.cat([one.flatten() for one in flat])

    def _zeros(self, name: str, weight: nn.Parameter) -> Tensor:
        return torch.zeros(self.shapes[name], device=weight.device)

    def write(self, gradients: Gradients, vector: Tensor) -> None:
        """Put `vector` (P,) in the place of the gradient."""
        for name, piece in self.pieces(vector).items():
            gradients.set(self.weights[name], piece.view(self.shapes[name]))

    def pieces(self, rows: Tensor) -> dict[str, Tensor]:
        """What of `rows`, (P,) or (P, k), belongs to each weight: its numbers in order."""
        parts = rows.split([shape.numel() for shape in self.shapes.values()])
        return dict(zip(self.weights, parts, strict=True))

    def whole(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """The rows (P, k) of which these are the `pieces`."""
        return torch.cat([pieces[name] for name in self.weights])
