"""The optimizers of a stage: AdamW, or Muon for the matrices of LoRA branches and AdamW for the rest.

Muon (torch's own, `torch.optim.Muon`) takes the gradient g of a matrix w (d_out, d_in) as a whole. With momentum m in
Nesterov's form,

    m <- 0.95 m + 0.05 g,    O = NS_5(0.05 g + 0.95 m),    w <- (1 - rate decay) w - rate c O

where NS_5, five Newton-Schulz steps, brings all singular values to about 1, so that a step moves all directions alike; of 0
it makes 0. c is sqrt(max(1, d_out / d_in)) (`original`), or 0.2 sqrt(max(d_out, d_in)) (`match_rms_adamw`), with which a
step is about as large as AdamW's at the same rate; as one rate serves both rules, this is the default. Decay is that of
`train.weight_decay`, none by default, where torch's is 0.1.

On LoRA, updates then spread over all directions of A and B (arXiv 2609.24678; its rates and scale were not at hand).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

from raycl.sections import TrainSpec

Rule = Literal["muon", "adamw"]
FACTORS = (".lora_A.", ".lora_B.")
"""What the names of a branch's parameters hold, as PEFT makes them."""


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, as one optimizer: a group of parameters for each rule that has some."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], train: TrainSpec) -> None:
        """`train` has decay and scale; rates are set in the groups, at every step."""
        super().__init__([*matrices, *others], {})
        self._rules: list[torch.optim.Optimizer] = []
        if matrices:
            scale = train.muon_scale
            self._rules.append(torch.optim.Muon(matrices, 1.0, train.weight_decay, adjust_lr_fn=scale))
        if others:
            self._rules.append(torch.optim.AdamW(others, lr=1.0, weight_decay=train.weight_decay))
        self.param_groups = [group for rule in self._rules for group in rule.param_groups]
        for rule in self._rules:
            rule.state = self.state

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]  # there is no closure, whose loss it would return
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Both rules, each on its own parameters."""
        for rule in self._rules:
            rule.step()


def rules(parameters: Mapping[str, nn.Parameter], train: TrainSpec) -> dict[str, Rule]:
    """By which rule each parameter moves, by its name in the stage module."""
    return {name: _rule(name, parameter, train) for name, parameter in parameters.items()}


def _rule(name: str, parameter: nn.Parameter, train: TrainSpec) -> Rule:
    """Muon for A and B of a branch, where it is asked for."""
    factor = parameter.dim() == 2 and any(part in f".{name}" for part in FACTORS)
    return "muon" if train.optimizer == "muon" and factor else "adamw"


def make_optimizer(parameters: Mapping[str, nn.Parameter], train: TrainSpec) -> torch.optim.Optimizer:
    """The optimizer of what trains, by its name in the stage module."""
    if train.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters.values()), lr=1.0, weight_decay=train.weight_decay)
    by: dict[Rule, list[nn.Parameter]] = {"muon": [], "adamw": []}
    for name, rule in rules(parameters, train).items():
        by[rule].append(parameters[name])
    return MuonAndAdamW(by["muon"], by["adamw"], train)
