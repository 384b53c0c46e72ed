"""A finished state as a model that answers: loaded on its base model, with gates, routes and prompts in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raycl.adapters.routes import RoutingRule
from raycl.adapters.soft_prompts import SoftPrompt
from raycl.errors import SpecError
from raycl.files import Json
from raycl.methods.common.base import Method, Route, StageInfo
from raycl.methods.registry import build, method_class
from raycl.models.load import LoadedModel, load_model
from raycl.sections import DataSpec
from raycl.sequence.states import States
from raycl.state.stage_state import Branch
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Example, Task
from raycl.train.generation import Decoder, Scored
from raycl.train.workers import Workers, local_device
from raycl.use.combined import merge_into, read_off
from raycl.use.explain import Strengths, strengths
from raycl.use.forms import EXACT, served_as
from raycl.use.heads import Head, find_head
from raycl.use.prompts import Prompts, encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 16
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Answer:
    """One answer, and where it comes from."""

    prompt: str
    text: str
    route: Route | None = None
    """Whose weights answered, where the method decides that input by input."""
    strengths: Strengths | None = None
    """How strongly each branch took part, where that was asked for and the method weighs branches."""
    tokens: int = 0
    """Tokens that were generated, the end token included."""
    ended: bool = True
    """Whether it came to its end, and not to the limit."""

    def explained(self, branches: Sequence[str]) -> Json:
        """Whose weights answered, JSON-ready: the route, and the weights of the branches, on average and by layer."""
        route = asdict(self.route) if self.route else None
        if self.strengths is None:
            return {"route": route, "branches": None, "layers": {}}
        layers = {path: dict(zip(branches, one, strict=True)) for path, one in self.strengths.layers.items()}
        return {"route": route, "branches": dict(zip(branches, self.strengths.mean, strict=True)), "layers": layers}


class Served:
    """A state on its base model. Leave it by `close`, or use it in a `with`."""

    def __init__(self, head: Head, loaded: LoadedModel, task: str | None = None, merge: bool = False) -> None:
        """Put the state on the model; `task` as in `Head.keys`, `merge` as in `load`.

        Raises SpecError for a model that it was not trained on, and for a state that cannot be merged.
        """
        if loaded.fingerprint != head.model_fingerprint:
            raise SpecError(
                f"model.name: {loaded.name} is not the model that {head.name} was trained on; next step: give that one, "
                "as it was then"
            )
        self.head = head
        self._loaded = loaded
        state = States(head.store, head.spec).of(head.keys(task))
        self.branches = tuple(part.task for part in state.parts)
        """The task of each branch, in the order of their strengths."""
        alone = method_class(head.spec.method.name).alone(head.spec.method)
        info = StageInfo(state.stage, len(head.stages), state.newest.task, head.spec.seed, alone)
        self._method: Method | None = build(head.spec.method, info)
        """None = the state is merged into the model."""
        self._method.serve(loaded.backbone, state)
        self._bare: dict[str, Tensor] = {}
        """Path -> the base model's own weight, of what was merged."""
        self._prompts = Prompts(head, encoder_of(head, loaded.tokenizer, loaded.backbone.encoder_decoder))
        if merge:
            self._merge(self._method)

    def _merge(self, method: Method) -> None:
        """Put what the branches add into the weights, in the model's precision, and take the layers away."""
        said = served_as(self.head)
        if "model" not in EXACT[said]:
            self.close()
            raise SpecError(
                f"merge: what {self.head.name} serves (method {self.head.spec.method.name}) depends on the input, or is a "
                "prompt, and so is no part of the weights; next step: leave it out"
            )
        if said != "weights":
            branch = self.as_one()
            method.remove()
            self._method = None
            self._bare = {path: self.model.get_submodule(path).weight.detach().clone() for path in branch.a}
            merge_into(self.model, branch)

    def as_one(self) -> Branch:
        """All branches as one, where their weights are the same for all inputs."""
        weights = self.explain(Example("", "", "a", "", ("",)))
        return read_off(self.model, None if weights is None else weights.layers)

    @property
    def model(self) -> Any:
        """The transformers model, with the state on it. Gated, routed and prompted states answer through `generate` below:
        they must see a whole prompt before the model does."""
        return self._loaded.backbone.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._loaded.tokenizer

    def generate(
        self, texts: Sequence[str], tokens: int | None = None, explain: bool = False, task: str | None = None
    ) -> list[Answer]:
        """Greedy answers, in order, batched. A text is a whole prompt, or with `task` it is put into that task's prompt.

        An answer has at most `tokens` tokens; none = as when it is scored: the longest label of the task, or the run's
        limit. Raises SpecError for an unknown task.
        """
        examples = [self.prompt(task, one) if task else self._prompts.whole(one) for one in texts]
        found = self.answer(examples, tokens or self._prompts.limit(task))
        if not explain:
            return found
        strong = map(self.explain, examples)
        return [replace(one, strengths=how) for one, how in zip(found, strong, strict=True)]

    def answer(self, examples: Sequence[Example], tokens: int, batch: int = BATCH) -> list[Answer]:
        """Greedy answers to prompts, in order, at most `tokens` long, `batch` of them together. Either all of them are in a
        chat, or none."""
        chat = bool(examples) and examples[0].chat is not None
        written = self.decoder(batch).answer(examples, tokens, chat)
        return [
            Answer(example.prompt, one.text, one.route, tokens=one.tokens, ended=one.ended)
            for example, one in zip(examples, written, strict=True)
        ]

    @property
    def rule(self) -> RoutingRule | None:
        """How inputs are sent to tasks; none where the method chooses no branch."""
        return None if self._method is None else self._method.rule()

    @property
    def soft_prompt(self) -> SoftPrompt | None:
        """The soft prompt of the inputs; none where the method has none, or chooses it by the input."""
        return None if self._method is None else self._method.soft_prompt()

    def encode(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of prompts as the model reads them, cut where they are too long."""
        return [list(one.prompt) for one in self._prompts.encoder.encode(examples)]

    def logits(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """What the served model says after each token of prompts, as `Decoder.logits`."""
        return self.decoder(1).logits(examples)

    def routes(self, examples: Sequence[Example]) -> list[Route]:
        """Whose weights would answer each prompt, with nothing generated; empty for a method that does not route."""
        return self.decoder(BATCH).routes(examples)

    def explain(self, example: Example) -> Strengths | None:
        """How strongly each branch takes part in the answer to a prompt; none where the method weighs no branches."""
        if self._method is None:
            return None
        encoder, backbone = self._prompts.encoder, self._loaded.backbone
        inputs = encoder.collate(encoder.encode([example]), backbone.device, answers=False)
        return strengths(backbone, self._method, inputs)

    def prompt(self, task: str, text: str) -> Example:
        """A text in the prompt of a task of the run. Raises SpecError for a task that the run's stream does not have."""
        return self._prompts.of_task(task, text)

    def evaluate(self, task: str, data: DataSpec | None = None) -> Scored:
        """Score the state on a task's test split, by its metric: one of the run, or any of the stream that `data` names."""
        (found,) = load_tasks([task], data or self.head.spec.data)
        return self.score(found)

    def score(self, task: Task) -> Scored:
        """Score the state on the test split of a task that is loaded."""
        scoring = self.head.spec.eval
        return self.decoder(scoring.batch_size, scoring.batch_tokens).score(task)

    def decoder(self, batch_size: int, batch_tokens: int | None = None) -> Decoder:
        """What answers and scores with the state in place, so many prompts, or tokens of prompts, together."""
        workers = Workers(device=str(self._loaded.backbone.device))
        return Decoder(self._loaded, self._method, self._prompts.encoder, batch_size, workers, batch_tokens)

    def close(self) -> None:
        """Take the state off the base model, which is as it was."""
        if self._method is not None:
            self._method.remove()
        with torch.no_grad():
            for path, weight in self._bare.items():
                self.model.get_submodule(path).weight.copy_(weight)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    what: str,
    store: str | None = None,
    task: str | None = None,
    model: str | None = None,
    device: str | None = None,
    merge: bool = False,
) -> Served:
    """A finished state as a model: `what` and `store` as in `find_head`, `task` where the method must be told whose inputs
    come.

    `model` is where the base model lies now, none = where the run had it; `device` none = a GPU if there is one. `merge`
    puts what branches add into the weights: the model is then a plain one, as fast as the base model, and rounded as its
    weights are. Raises UserError for a state or a model that cannot be had, and for a state that cannot be merged.
    """
    head = find_head(what, store)
    head.keys(task)  # before the model is loaded, which takes time
    return Served(head, load_base(head, model, device), task, merge)


def evaluate(
    head: Head, tasks: Sequence[str], data: DataSpec, model: str | None = None, device: str | None = None
) -> Iterator[tuple[str, Scored]]:
    """Score a state on tasks of the stream that `data` names; each with its name. The base model is loaded once.

    `model` and `device` as in `load`. Raises UserError as `load`, and for tasks whose data cannot be read.
    """
    loaded = load_base(head, model, device)
    if head.needs_task:
        for task in tasks:
            with Served(head, loaded, task) as served:
                yield task, served.evaluate(task, data)
        return
    with Served(head, loaded) as served:
        for task in tasks:
            yield task, served.evaluate(task, data)


def load_base(head: Head, model: str | None, device: str | None) -> LoadedModel:
    """The base model of a state; `model` and `device` as in `load`. Raises SpecError for one that cannot be used."""
    spec = head.spec.model if model is None else head.spec.model.model_copy(update={"name": model})
    loaded = load_model(spec, device or local_device())
    if loaded.faults:
        raise SpecError("\n".join(loaded.faults))
    return loaded
