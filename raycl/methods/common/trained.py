"""What methods share that train the same weights at every stage: install them, hand them on, serve them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from raycl.adapters.backbone import Backbone
from raycl.methods.common.base import Carries, InPeft, Method, Moments, P
from raycl.methods.common.lora import L
from raycl.methods.common.weights import LoraTrainee, TrainedParams, Trainee, trainee
from raycl.state.stage_state import StagePart, StageState

W = TypeVar("W", bound=Trainee)
T = TypeVar("T", bound=TrainedParams)


class TrainedMethod(Method[P], Generic[P, W]):
    """Train the same weights at every stage, from where the last stage left them. Subclasses add what guards them."""

    trainee: W

    @classmethod
    def carries(cls, params: P) -> Carries:
        """The last part holds all weights."""
        return "last"

    @classmethod
    def in_peft(cls, params: P) -> InPeft:
        """The last adapter is all that trains, or all weights are."""
        return "last" if params.adapts_modules() else "weights"

    @abstractmethod
    def make_trainee(self) -> W:
        """What a stage trains."""

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last stage's weights, or start fresh ones."""
        self.trainee = self.make_trainee()
        self.trainee.start(backbone, state.last, self.info.generator("branch"))

    def consolidate(self, moments: Moments) -> StagePart:
        """The trained weights."""
        branch, tensors = self.trainee.holdings()
        return StagePart(self.info.task, branch, tensors, self.facts())

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The last stage's weights."""
        self.trainee = self.make_trainee()
        self.trainee.serve(backbone, state.newest, self.info.generator("branch"))

    def remove(self) -> None:
        """Take the weights off; after an installation that failed early there may be none."""
        if hasattr(self, "trainee"):
            self.trainee.remove()


class LoraOrFullMethod(TrainedMethod[T, Trainee]):
    """Train one LoRA branch or all weights, as the hyper-parameters say."""

    def make_trainee(self) -> Trainee:
        """What the hyper-parameters ask for."""
        return trainee(self.params)


class OneLoraMethod(TrainedMethod[L, LoraTrainee]):
    """Train one LoRA branch."""

    def make_trainee(self) -> LoraTrainee:
        """One LoRA branch."""
        return LoraTrainee(self.params.shape)
