"""Frozen means frozen: the branches of earlier stages are compared before and after a stage's training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raycl.state.stage_state import StageState

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_STACKS = ("frozen_a", "frozen_b")
"""The buffers in which a backbone holds the earlier branches (see `raycl.adapters.stacked_lora`)."""


class Frozen:
    """The checksums of the earlier stages' branches, on the backbone and in the state, when it was made.

    Base weights are not among them: to sum up those of a large model takes longer than to switch stages.
    """

    def __init__(self, model: nn.Module, state: StageState) -> None:
        """`model` is the backbone with its adapters on, just before training."""
        self._model, self._state = model, state
        self._sums = {name: checksum(tensor) for name, tensor in _tensors(model, state)}

    def require_unchanged(self) -> None:
        """Raises RuntimeError that names the first branch that has changed: a fault of the method, whose stage is none."""
        now = {name: checksum(tensor) for name, tensor in _tensors(self._model, self._state)}
        changed = [name for name, before in self._sums.items() if now.get(name) != before]
        if changed:
            raise RuntimeError(
                f"the stage changed {len(changed)} tensors of earlier stages, {changed[0]} first, so nothing of it is "
                "stored: a method trains only what is its own"
            )


def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's numbers, each read as the whole number that its bits are; any shape and type.

    A change of one number always changes it. It is made on the tensor's own device: a SHA-256 would bring all of them to the
    CPU, twice per stage. It finds accidents; who means to deceive is no matter here.
    """
    return int(tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))


def _tensors(model: nn.Module, state: StageState) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in model.named_buffers():
        if name.rsplit(".", 1)[-1] in _STACKS:
            yield name, buffer
    for number, part in enumerate(state.parts, start=1):
        if part.branch is not None:
            for side, pairs in (("A", part.branch.a), ("B", part.branch.b)):
                for path, tensor in pairs.items():
                    yield f"{side} of {path} of stage {number}", tensor
