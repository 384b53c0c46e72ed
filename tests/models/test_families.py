"""Which modules get adapters in which family."""

from __future__ import annotations

import pytest

from raycl.models.families import default_targets

Q_AND_V = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("t5", ("q", "v")),
        ("mt5", ("q", "v")),
        ("phi3", ("qkv_proj",)),
        *((kind, ("q_proj", "v_proj")) for kind in Q_AND_V),
    ],
)
def test_the_targets_of_a_family(kind: str, targets: tuple[str, ...]) -> None:
    """Query and value, or the one matrix that holds both."""
    assert default_targets(kind) == targets


def test_other_families_are_those_of_peft() -> None:
    """What raycl does not list, PEFT may; what nobody knows has none."""
    assert default_targets("gpt2") == ("c_attn",)
    assert default_targets("no_such_family") == ()
