"""What a method declares about itself for the shared matrix of tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One method with toy settings, and what it declares about itself."""

    params: dict[str, Any]
    """Its settings, with its name."""
    trains: str | None = None
    """What a stage trains: A, B of a LoRA branch on the default modules (`""`: neither), W = all weights of the backbone,
    g = the new gate; none = not said, and not checked."""
    keeps: str = ""
    """What a part holds beside its branch: g = a gate, G = bases of the gate's features, L = bases of layer inputs."""
    frozen_branches: bool = True
    """Whether old branches stay in the model beside the current one."""
    own: tuple[str, ...] = ()
    """Trainable parameters of the method's own modules, as named in the stage module; {0} = index of the stage from 0,
    * = any stage so far; {path} = each module that carries adapters by default."""
    own_from: int = 1
    """First stage at which they are there."""
    continues: bool = True
    """Whether a stage starts from the function the one before ended with."""
    serves_trained: bool = True
    """Whether the served model has the weights that were trained, and not some merger of them."""
    holds_trained: bool = True
    """Whether a part's factors are the very tensors that were trained, and not what acts of them."""
    rounding: float = 0.0
    """How far served logits may be from those after training, relative to the largest."""
    bare: bool = True
    """Whether the first stage starts from the base model's function."""
    rows: int = 1
    """Training rows that the first stage makes of one example."""
    falls: float = 3.0
    """By what factor at least the loss falls on a learnable task; soft prompts move a random frozen model only so far."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of TrainSpec for the method's toy stages; the same in all its cases."""
    other_values: Mapping[str, Any] = field(default_factory=dict)
    """Another value, or a tuple of values of which one is another, of each hyper-parameter that stage keys leave out."""

    @property
    def branch(self) -> bool:
        """Whether a part holds a LoRA branch."""
        return "B" in (self.trains or "")

    def another(self, name: str, value: Any) -> Any:
        """A value of a field that is not `value`. Raises KeyError where the case knows none."""
        return another(self.other_values[name], value)


def another(others: Any, value: Any) -> Any:
    """What is not `value`: the other one, or the first of a tuple of others."""
    return next(other for other in (others if isinstance(others, tuple) else (others,)) if other != value)


SELF = {"llama": ["model.layers.{}.self_attn"], "t5": ["encoder.block.{}.layer.0.SelfAttention"]}
SELF["t5"] += ["decoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.1.EncDecAttention"]
ADAPTED = {
    family: sorted(
        f"{block.format(layer)}.{name}"
        for block in SELF[family]
        for layer in (0, 1)
        for name in (("q_proj", "v_proj") if family == "llama" else ("q", "v"))
    )
    for family in SELF
}
"""Paths of the modules that carry adapters in the tiny models, written out independently of the code."""


def expected_trainable(case: Case, model: Any, family: str, stage: int) -> list[str]:
    """Names in the stage module of everything that may train at `stage`."""
    trains = case.trains or ""
    letters = [letter for letter in "AB" if letter in trains]
    names = [f"model.{path}.lora_{letter}.branch.weight" for path in ADAPTED[family] for letter in letters]
    if "W" in trains:
        names += [f"model.{name}" for name, _ in model.backbone.model.named_parameters()]
    for pattern in case.own if stage >= case.own_from else ():
        for index in range(stage) if "*" in pattern else [stage - 1]:
            paths = ADAPTED[family] if "{path}" in pattern else [""]
            names += [pattern.replace("*", str(index)).format(index, path=path) for path in paths]
    if "g" in trains:
        names += [f"extra.gates.{stage - 1}.{part}.move" for part in ("layers.0", "layers.1", "key")]
    return sorted(names)
