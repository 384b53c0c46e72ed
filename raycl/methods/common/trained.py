"""What methods over a trainee share: install it, hand it on, serve it."""

from __future__ import annotations

from raycl.adapters.backbone import Backbone
from raycl.methods.common.base import Method, Moments
from raycl.methods.common.weights import TrainedParams, Trainee, trainee
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState


class TrainedMethod(Method):
    """Train the same weights at every stage, from where the last stage left them. Subclasses add what guards them."""

    Params = TrainedParams
    params: MethodParams
    carries = "last"

    def make_trainee(self) -> Trainee:
        """What a stage trains: by default, what the hyper-parameters ask for."""
        return trainee(self.params)

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
        self.trainee.serve(backbone, state.last, self.info.generator("branch"))

    def remove(self) -> None:
        """Take the weights off; after an installation that failed early there may be none."""
        if hasattr(self, "trainee"):
            self.trainee.remove()
