"""What a model can do beside the tasks that it was trained on, as a view."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ability:
    """What a state can do beside its tasks."""

    stage: int
    """0 = the base model."""
    task: str
    """Of the stage."""
    perplexity: float | None
    """Of the plain texts; none for an encoder-decoder, which gives no text a probability, and for soft prompts, which are
    not made for one."""
    instructions: float
    """Percent of the instructions that are followed."""
