"""RouteLoRA with the settings of its first case, and its features by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raycl.methods.registry import method_params
from raycl.spec import MethodParams
from raycl.tasks.task import Example
from raycl.testing.probes import encoder_of
from tests.kit.cases import CASES

HARD = CASES["route_lora"].params
WIDTH = 48
"""D of the tiny models."""


def features(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean of the token embeddings of each prompt, by hand (n, D)."""
    table = model.backbone.model.get_input_embeddings().weight.detach().double()
    return torch.stack([table[list(row.prompt)].mean(dim=0) for row in encoder_of(model).encode(examples)])


def params_of(**changes: Any) -> MethodParams:
    """The default parameters with changes, checked."""
    return method_params("route_lora").model_validate(HARD | changes)
