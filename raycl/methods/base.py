"""The method interface: everything the stage loop asks of a continual-learning algorithm.

One object serves one stage (or one evaluation). The stage loop calls, in this order:

    install(backbone, state)      adapters on; frozen parts stacked; what trains is decided
    collect("before")             moments that a data pass over the training set will fill, or none: no pass
    initialise(moments)
    condition(inputs)             before every forward pass: gates, selected prompts
    penalties()                   after every training forward pass: extra loss terms
    collect("after"), consolidate(moments) -> the stage's part
    remove()                      the backbone is as it was

and, to score a published state, serve(backbone, state) ... remove(). A method knows torch, the adapters and the stage
state; it knows no Ray, no DeepSpeed, no MLflow and no files.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.moments import SecondMoment
from raycl.spec import Json, MethodParams
from raycl.state.stage_state import StagePart, StageState

Moments = dict[str, SecondMoment]
When = Literal["before", "after"]


@dataclass(frozen=True)
class StageInfo:
    """Which stage a method object serves."""

    stage: int
    """1-based."""
    stages: int
    """Planned length of the sequence."""
    task: str
    seed: int
    """The run's seed."""

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on seed, stage and purpose only: same draws in any process, for any method."""
        text = f"{self.seed}:{self.stage}:{purpose}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))


@dataclass(frozen=True)
class Penalty:
    """An extra loss term: the term as the paper defines it, and its weight lambda in the loss."""

    raw: Tensor
    weight: float


class Method(ABC):
    """Base class of all methods. Subclasses set `Params` and implement install, consolidate, serve and remove."""

    Params: ClassVar[type[MethodParams]]
    title: ClassVar[str]
    """One line for listings: what it does."""
    paper: ClassVar[str]
    """Where it comes from."""

    def __init__(self, params: MethodParams, info: StageInfo) -> None:
        self.params = params
        self.info = info

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's settings for a model family and an order, as a nested mapping of run-spec fields; {} if none."""
        return {}

    @abstractmethod
    def install(self, backbone: Backbone, state: StageState) -> None:
        """Put the method on the backbone, ready to train the next stage after `state`."""

    def collect(self, when: When) -> Moments | None:
        """Ask for a data pass before or after training: a dict that the method fills during it; none = no pass."""
        return None

    @property
    def observes_layers(self) -> bool:
        """Whether a data pass must run the backbone; if not, `condition` alone sees every batch."""
        return True

    def initialise(self, moments: Moments) -> None:
        """Use the moments of the pass before training. Called only if there were any."""

    def condition(self, inputs: Inputs) -> None:
        """Prepare for a forward pass on `inputs`: what depends on the input and stays fixed over layers and decoding."""

    def penalties(self) -> dict[str, Penalty]:
        """Extra loss terms after a training forward pass, by name."""
        return {}

    @abstractmethod
    def consolidate(self, moments: Moments) -> StagePart:
        """What this stage hands on: a pure function of the trained modules and the moments after training."""

    @abstractmethod
    def serve(self, backbone: Backbone, state: StageState) -> None:
        """Put the finished `state` on the backbone for inference; nothing trains."""

    @abstractmethod
    def remove(self) -> None:
        """Take everything off the backbone again."""

    def modules(self) -> Mapping[str, nn.Module]:
        """The method's own modules beside the backbone (gates, prompts), which the engine must own too."""
        return {}

    def measures(self) -> dict[str, float]:
        """Gauges for the log: gate means, subspace dimensions. Cheap; never changes anything."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What the part records beside tensors."""
        return {}
