"""All weights of the backbone as what trains: fp32 copies stand in for its own tensors, which come back untouched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone


class FullWeights:
    """Other values in place of the backbone's own weights, until `remove`.

    `parameters` maps each parameter's name in the backbone (a tied weight counts once) to the parameter itself.
    """

    def __init__(self, backbone: Backbone, values: Mapping[str, Tensor] | None, train: bool) -> None:
        """`values` by name, all of them or some (none = the backbone's own); trained in fp32, or served in its dtype."""
        self.parameters: dict[str, nn.Parameter] = dict(backbone.model.named_parameters())
        unknown = sorted((values or {}).keys() - self.parameters.keys())
        if unknown:
            raise ValueError(f"weights that the model does not have: {', '.join(unknown[:3])}")
        self._own = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            value = (values or {}).get(name, parameter.data)
            dtype = torch.float32 if train else parameter.dtype
            parameter.data = value.to(parameter.device, dtype, copy=train)
            parameter.requires_grad_(train)

    def current(self) -> dict[str, Tensor]:
        """Copies of all weights, fp32 on the CPU."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, parameter in self.parameters.items()
        }

    def remove(self) -> None:
        """Put the backbone's own tensors back."""
        for name, parameter in self.parameters.items():
            parameter.data = self._own[name]
            parameter.requires_grad_(False)
