"""Every test of the adapters draws the same numbers each time."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Seed torch's global generator."""
    torch.manual_seed(0)
