"""A method that stands on another one: every hook goes to the inner method unless the outer one has its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.routes import RoutingRule
from raycl.adapters.soft_prompts import SoftPrompt
from raycl.methods.common.answers import Ask
from raycl.methods.common.base import (
    Carries,
    Gradients,
    InPeft,
    Method,
    Moments,
    Observes,
    P,
    Penalty,
    Route,
    Row,
    StageInfo,
    Step,
    When,
    Write,
)
from raycl.methods.common.rows import Read
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.tasks.task import Example

Inner = TypeVar("Inner", bound=Method[Any])


class Wrapping(Method[P], Generic[P, Inner]):
    """Base of methods around an inner method, which gets the same hyper-parameters and stage.

    A subclass names the inner method and overrides the hooks that it adds to; there it calls `super()` to keep the inner
    method's share. What stands on the class (`version`, `needs_task_id`, `joint`, `chooses`, `settings`) is not passed
    through: it is part of what the outer method is.
    """

    def __init__(self, params: P, info: StageInfo) -> None:
        super().__init__(params, info)
        self.inner: Inner = self.inner_class(params)(params, info)

    @classmethod
    @abstractmethod
    def inner_class(cls, params: P) -> type[Inner]:
        """The class of the inner method."""

    @classmethod
    def carries(cls, params: P) -> Carries:
        """The inner method's."""
        return cls.inner_class(params).carries(params)

    @classmethod
    def alone(cls, params: P) -> bool:
        """The inner method's."""
        return cls.inner_class(params).alone(params)

    @classmethod
    def in_peft(cls, params: P) -> InPeft:
        """The inner method's."""
        return cls.inner_class(params).in_peft(params)

    @classmethod
    def takes(cls, params: P) -> bool:
        """The inner method's."""
        return cls.inner_class(params).takes(params)

    @classmethod
    def passes(cls, params: P) -> Mapping[When, Observes]:
        """The inner method's."""
        return cls.inner_class(params).passes(params)

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The inner method's."""
        self.inner.install(backbone, state)

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The inner method's."""
        return self.inner.examples(own, write)

    def collect(self, when: When) -> Moments | None:
        """The inner method's."""
        return self.inner.collect(when)

    @property
    def observes(self) -> Observes:
        """The inner method's."""
        return self.inner.observes

    @property
    def pass_examples(self) -> int | None:
        """The inner method's."""
        return self.inner.pass_examples

    @property
    def pass_tokens(self) -> int | None:
        """The inner method's."""
        return self.inner.pass_tokens

    def observe_gradients(self) -> None:
        """The inner method's."""
        self.inner.observe_gradients()

    def initialise(self, moments: Moments) -> None:
        """The inner method's."""
        self.inner.initialise(moments)

    def take(self, branch: Branch) -> None:
        """The inner method's."""
        self.inner.take(branch)

    def condition(self, inputs: Inputs) -> None:
        """The inner method's."""
        self.inner.condition(inputs)

    def soft_prompt(self) -> SoftPrompt | None:
        """The inner method's."""
        return self.inner.soft_prompt()

    def routes(self) -> Sequence[Route] | None:
        """The inner method's."""
        return self.inner.routes()

    def rule(self) -> RoutingRule | None:
        """The inner method's."""
        return self.inner.rule()

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The inner method's."""
        return self.inner.penalties(step)

    @property
    def follows_gradients(self) -> bool:
        """The inner method's."""
        return self.inner.follows_gradients

    def gradients(self, gradients: Gradients) -> None:
        """The inner method's, if it follows gradients: the outer one may follow them alone."""
        if self.inner.follows_gradients:
            self.inner.gradients(gradients)

    def running(self) -> Mapping[str, Tensor]:
        """The inner method's."""
        return self.inner.running()

    def recite(self, ask: Ask) -> None:
        """The inner method's."""
        self.inner.recite(ask)

    def memorise(self, read: Read) -> None:
        """The inner method's."""
        self.inner.memorise(read)

    def consolidate(self, moments: Moments) -> StagePart:
        """The inner method's."""
        return self.inner.consolidate(moments)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The inner method's."""
        self.inner.serve(backbone, state)

    def remove(self) -> None:
        """The inner method's."""
        self.inner.remove()

    def modules(self) -> Mapping[str, nn.Module]:
        """The inner method's."""
        return self.inner.modules()

    def measures(self) -> dict[str, float]:
        """The inner method's."""
        return self.inner.measures()

    def facts(self) -> dict[str, Any]:
        """The inner method's."""
        return self.inner.facts()
