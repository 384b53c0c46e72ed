"""The method interface: everything the stage loop asks of a continual-learning algorithm.

One object serves one stage (or one evaluation). The stage loop calls, in this order:

    install(backbone, state)      adapters on; frozen parts stacked; what trains is decided
    examples(own, write)          the rows to train on: the task's own, and what the method replays or makes up
    collect("before")             statistics that a data pass over the rows will fill, or none: no pass
    initialise(moments)
    condition(inputs)             before every forward pass: gates, selected prompts
    soft_prompt()                 vectors to put among the token embeddings of that pass
    routes()                      whose weights answer the inputs that `condition` saw, where the method decides that
    penalties(step)               after every training forward pass: extra loss terms
    gradients(...)                after the backward pass of a global batch, where `follows_gradients`
    take(branch)                  in the place of training, where an adapter from elsewhere is the stage
    collect("after")              as before training
    recite(ask)                   the trained model's own answers, where the part is to hold some
    memorise(read)                examples as the model reads them, where the part is to hold some
    consolidate(moments)          the stage's part
    remove()                      the backbone is as it was

and, to score a published state, serve(backbone, state) ... remove(), with rule() in between to export it. A method knows
torch, the adapters, the stage state and examples; it knows no Ray, no DeepSpeed, no MLflow and no files.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.routes import Route, RoutingRule
from raycl.adapters.soft_prompts import SoftPrompt
from raycl.files import Json
from raycl.methods.common.answers import Ask
from raycl.methods.common.rows import Read, Row, own_rows
from raycl.spec import MethodParams
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.tasks.task import Example


class Statistic(Protocol):
    """A sum over examples that data-parallel workers add up: both tensors in place."""

    total: Tensor
    count: Tensor


Moments = dict[str, Any]
"""Statistics by name; each value is a `Statistic`."""
When = Literal["before", "after"]
Observes = Literal["inputs", "layers", "gradients"]
"""What a data pass must run: only `condition`; a forward pass; forward and backward pass, example by example."""
Replays = Literal["no", "real", "pseudo", "all data"]
Carries = Literal["all", "last"]
"""Whose tensors a stage needs: every part's, or the last part's only (facts are there for all)."""
InPeft = Literal["last", "sum", "fixed", "each", "prompt", "weights", "adapted", "none"]
"""What the served model is, so far as PEFT and transformers can load it without raycl: the last stage's adapter; all stages'
adapters active at once; one adapter that an export works out, since the weights of the branches are the same for all inputs;
one of the stages' adapters for each input, and a rule that chooses it; a soft prompt in front of the input; the base model
with other weights; the last stage's adapter, trained on for each input; or nothing of these."""
P = TypeVar("P", bound=MethodParams)


@dataclass(frozen=True)
class About:
    """A method in words, for listings and for its card; equations stand in the docstring of the method's module."""

    title: str
    """One line: what it does."""
    paper: str
    """Where it comes from."""
    trains: str
    """What a stage trains."""
    growth: str
    """How the stage state grows with the number of tasks T."""
    frozen: str = "the backbone"
    penalised: str = "nothing"
    projected: str = "nothing"
    state: Mapping[str, str] = field(default_factory=dict)
    """What a part holds: name of a tensor (its part before a `/` or the whole), or `branch` -> shape and meaning."""
    replays: Replays = "no"
    """Whether a stage trains on examples of earlier tasks."""
    mergeable: bool = False
    """Whether the served model can be folded into the backbone's weights."""
    differences: Sequence[str] = ()
    """Where this differs from the paper and from the released code, with the setting that restores it."""


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
    alone: bool = False
    """Whether the stage depends on no other (`Method.alone`)."""

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on seed, stage and purpose only: same draws in any process, for any method.

        A stage that depends on no other draws as a first stage does, wherever it stands.
        """
        text = f"{self.seed}:{1 if self.alone else self.stage}:{purpose}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))


@dataclass(frozen=True)
class Sampling:
    """How `Write` continues a prompt."""

    tokens: int
    """Longest continuation."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0 = take the likeliest (greedy)."""
    repetition_penalty: float = 1.0


Write = Callable[[Sequence[str], Sampling, torch.Generator], list[str]]
"""Lets the installed model continue prompts: texts, how, and the generator of the draws -> continuations."""


@dataclass(frozen=True)
class Penalty:
    """An extra loss term: the term as the paper defines it, and its weight lambda in the loss."""

    raw: Tensor
    weight: float


@dataclass(frozen=True)
class Step:
    """One training forward pass, as `penalties` sees it."""

    inputs: Inputs
    logits: Tensor
    """(B, L, V): what predicts `labels`."""
    labels: Tensor
    """(B, L), -100 where there is no answer token."""
    loss: Tensor
    """The cross-entropy as it enters the loss (a scalar)."""
    progress: float
    """Share of the stage's optimizer steps that are done, 0 to 1."""
    run: Callable[[Inputs], Tensor]
    """Another forward pass of the module as the method has it now: inputs -> logits as above."""
    sum: Callable[[Iterable[Tensor]], None]
    """Adds tensors up over the data-parallel workers, in place."""
    tokens: float = 1.0
    """What `loss` is divided by: answer tokens of the global batch per micro-batch. A sum over answer tokens divided by it
    is averaged to the token mean of the global batch, whatever the number of workers."""
    rows: float = 1.0
    """Rows of the global batch per micro-batch, without those that only fill up the last batch (their labels are all -100).
    A sum over rows divided by it is averaged to the mean over the rows of the global batch."""


@dataclass(frozen=True)
class Gradients:
    """The gradients of a global batch, averaged over the workers, before clipping and before the optimizer."""

    get: Callable[[nn.Parameter], Tensor | None]
    """The whole gradient of a parameter; none where there is none."""
    set: Callable[[nn.Parameter, Tensor], None]
    """Replace it."""
    sum: Callable[[Iterable[Tensor]], None]
    """Adds tensors up over the data-parallel workers, in place."""


class Method(ABC, Generic[P]):
    """Base class of all methods, over the model of its hyper-parameters.

    Subclasses set `Params` and `about`, and implement install, consolidate, serve, remove. What is the same for all settings
    is declared on the class; what depends on them is a property, and `carries`, which is asked without a method object.
    """

    Params: ClassVar[type[MethodParams]]
    about: ClassVar[About]
    version: ClassVar[int] = 1
    """Raised when the arithmetic of a stage changes: stored stages of the old version are then not reused."""
    needs_task_id: ClassVar[bool] = False
    """Task id at test: task i is always scored with the state as it was after its own stage i."""
    joint: ClassVar[bool] = False
    """One stage on the union of all tasks in place of a sequence."""
    chooses: ClassVar[bool] = False
    """Decides input by input whose weights answer, and says so in `routes`."""

    def __init__(self, params: P, info: StageInfo) -> None:
        self.params = params
        self.info = info

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's settings for a model family and an order, as a nested mapping of run-spec fields; {} if none."""
        return {}

    @classmethod
    def carries(cls, params: P) -> Carries:
        """Whose tensors a stage with these hyper-parameters needs."""
        return "all"

    @classmethod
    def alone(cls, params: P) -> bool:
        """Whether a stage depends on its task alone and on no earlier stage.

        Such a stage has one key, and is trained once, wherever its task stands in whatever order; what is served is made of
        the parts of all tasks seen, in an order of their own.
        """
        return False

    @classmethod
    def in_peft(cls, params: P) -> InPeft:
        """What PEFT or transformers alone, without raycl, make the served model of."""
        return "none"

    @classmethod
    def takes(cls, params: P) -> bool:
        """Whether a LoRA branch that was trained elsewhere can be a stage: then `take` puts it there."""
        return False

    @classmethod
    def passes(cls, params: P) -> Mapping[When, Observes]:
        """The data passes that `collect` will ask for, and what each must run: known before anything is installed."""
        return {}

    @abstractmethod
    def install(self, backbone: Backbone, state: StageState) -> None:
        """Put the method on the backbone, ready to train the next stage after `state`."""

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The rows to train on, from the task's own examples. `write` runs the model as it stands after `install`.

        `own` may be longer than memory: `own_rows` makes its rows one at a time.
        """
        return own_rows(own)

    def collect(self, when: When) -> Moments | None:
        """Ask for a data pass before or after training: a dict that the method fills during it; none = no pass."""
        return None

    @property
    def observes(self) -> Observes:
        """What a data pass must run."""
        return "layers"

    @property
    def pass_examples(self) -> int | None:
        """At most so many rows in a data pass, drawn at random; none = all."""
        return None

    @property
    def pass_tokens(self) -> int | None:
        """Rows of a data pass are drawn at random until they have so many tokens; none = all. Asked after `install`."""
        return None

    def observe_gradients(self) -> None:
        """In a pass that observes gradients: take up those of one example's log-likelihood, -sum log p, from `.grad`."""

    def initialise(self, moments: Moments) -> None:
        """Use the moments of the pass before training. Called only if there were any."""

    def take(self, branch: Branch) -> None:
        """In the place of training, and after the pass before it: make `branch` what this stage trained.

        Raises TypeError for a method that `takes` none; a run asks that before anything starts.
        """
        raise TypeError(f"{type(self).__name__} takes no branch from elsewhere")

    def condition(self, inputs: Inputs) -> None:
        """Prepare for a forward pass on `inputs`: what depends on the input and stays fixed over layers and decoding."""

    def soft_prompt(self) -> SoftPrompt | None:
        """The soft prompt of the batch that `condition` saw last."""
        return None

    def routes(self) -> Sequence[Route] | None:
        """Where the inputs of the batch that `condition` saw last went, one per input; none = the method routes nothing."""
        return None

    def rule(self) -> RoutingRule | None:
        """How `routes` are found, as numbers for other programs, once a state is served; none = nothing is routed."""
        return None

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """Extra loss terms after a training forward pass, by name."""
        return {}

    @property
    def follows_gradients(self) -> bool:
        """Whether `gradients` wants to see every optimizer step of this stage."""
        return False

    def gradients(self, gradients: Gradients) -> None:
        """Read or change the gradients of a global batch. Called only where `follows_gradients`."""

    def running(self) -> Mapping[str, Tensor]:
        """Tensors that training fills in place beside what the optimizer holds, alike on every worker.

        Mid-stage checkpoints keep them.
        """
        return {}

    def recite(self, ask: Ask) -> None:
        """After training: `ask` the model for answers that the part is to hold."""

    def memorise(self, read: Read) -> None:
        """After training: `read` examples whose token ids the part is to hold."""

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


def one_function(method: Method[Any]) -> bool:
    """Whether a served method makes one function of the tokens, the same for every input: no gate, no route, no prompt.

    No hook: of a method around another one the outer one's answer counts.
    """
    return method.in_peft(method.params) in ("last", "sum", "fixed", "weights")
