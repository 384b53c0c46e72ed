"""A finished state as a model that answers: loaded on its base model, with gates, routes and prompts in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raycl.errors import SpecError
from raycl.methods.common.base import Method, Route, StageInfo
from raycl.methods.registry import build, method_class
from raycl.models.load import LoadedModel, load_model
from raycl.sequence.states import States
from raycl.spec import DataSpec
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.load import Make, load_tasks
from raycl.tasks.own import is_chat
from raycl.tasks.prompts import Renderer
from raycl.tasks.rows import Row
from raycl.tasks.stream import PromptParts, TaskEntry
from raycl.tasks.task import Example
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder, Scored
from raycl.train.workers import Workers, local_device
from raycl.use.explain import Strengths, strengths
from raycl.use.heads import Head, find_head

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


class Served:
    """A state on its base model. Leave it by `close`, or use it in a `with`."""

    def __init__(self, head: Head, loaded: LoadedModel, task: str | None = None) -> None:
        """Put the state on the model; `task` as in `Head.keys`. Raises SpecError for a model that it was not trained on."""
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
        self._method: Method = build(head.spec.method, info)
        self._method.serve(loaded.backbone, state)

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
        examples = [self.prompt(task, one) if task else Example("", "", one, "", ("",)) for one in texts]
        decoder = self._decoder(BATCH)
        limit = tokens or (self._limit(task, decoder.encoder) if task else self.head.spec.data.max_target_tokens)
        chat = bool(examples) and examples[0].chat is not None
        written = decoder.answer(examples, limit, chat)
        found = [self._strengths(decoder.encoder, one) if explain else None for one in examples]
        return [
            Answer(example.prompt, one.text, one.route, strong)
            for example, one, strong in zip(examples, written, found, strict=True)
        ]

    def _limit(self, task: str, encoder: Encoder) -> int:
        """Tokens after which an answer to a task ends, as when it was scored."""
        entry, labels = self._entry(task), self._labels(task)
        words = (*labels, *(word for words in entry.aliases.values() for word in words)) if labels else None
        return encoder.limit(words, entry.max_answer_tokens, is_chat(entry))

    def _strengths(self, encoder: Encoder, example: Example) -> Strengths | None:
        backbone = self._loaded.backbone
        inputs = encoder.collate(encoder.encode([example]), backbone.device, answers=False)
        return strengths(backbone, self._method, inputs)

    def prompt(self, task: str, text: str) -> Example:
        """A text in the prompt of a task of the run. Raises SpecError for a task that the run's stream does not have."""
        entry = self._entry(task)
        style = self._record(task).get("prompt") or entry.prompt or ("chat" if is_chat(entry) else "plain")
        layout: Any = style if isinstance(style, str | PromptParts) else PromptParts.model_validate(style)
        render = Renderer(entry, layout, self._labels(task), self.head.spec.data.reveal_task)
        return Make(entry, "use", render)(0, Row(text, ("",)))

    def _entry(self, task: str) -> TaskEntry:
        """What the run's stream, or a built-in one, says of a task. Raises SpecError for an unknown one."""
        entry = open_catalogue(self.head.spec.data.stream).tasks.get(task)
        if entry is None:
            raise SpecError(
                f"task: {task!r} is unknown to {self.head.name}; allowed: {', '.join(self.head.spec.tasks)}"
            )
        return entry

    def _record(self, task: str) -> Mapping[str, Any]:
        return self.head.records.get(task, {})

    def _labels(self, task: str) -> tuple[str, ...] | None:
        """The labels that a task was trained with, or those of its stream; none for free text."""
        counted = (self._record(task).get("label_counts") or {}).get("train")
        return tuple(counted or self._entry(task).labels or ()) or None

    def evaluate(self, task: str, data: DataSpec | None = None) -> Scored:
        """Score the state on a task's test split, by its metric: one of the run, or any of the stream that `data` names."""
        (found,) = load_tasks([task], data or self.head.spec.data)
        return self._decoder(self.head.spec.eval.batch_size).score(found)

    def _decoder(self, batch_size: int) -> Decoder:
        data = self.head.spec.data
        loaded = self._loaded
        encoder = Encoder(
            loaded.tokenizer, loaded.backbone.encoder_decoder, data.max_source_tokens, data.max_target_tokens
        )
        return Decoder(loaded, self._method, encoder, batch_size, Workers(device=str(loaded.backbone.device)))

    def close(self) -> None:
        """Take the state off the base model, which is as it was."""
        self._method.remove()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    what: str, store: str | None = None, task: str | None = None, model: str | None = None, device: str | None = None
) -> Served:
    """A finished state as a model: `what` and `store` as in `find_head`, `task` where the method must be told whose inputs
    come.

    `model` is where the base model lies now, none = where the run had it; `device` none = a GPU if there is one. Raises
    UserError for a state or a model that cannot be had.
    """
    head = find_head(what, store)
    head.keys(task)  # before the model is loaded, which takes time
    return Served(head, _base(head, model, device), task)


def evaluate(
    head: Head, tasks: Sequence[str], data: DataSpec, model: str | None = None, device: str | None = None
) -> Iterator[tuple[str, Scored]]:
    """Score a state on tasks of the stream that `data` names; each with its name. The base model is loaded once.

    `model` and `device` as in `load`. Raises UserError as `load`, and for tasks whose data cannot be read.
    """
    loaded = _base(head, model, device)
    if head.needs_task:
        for task in tasks:
            with Served(head, loaded, task) as served:
                yield task, served.evaluate(task, data)
        return
    with Served(head, loaded) as served:
        for task in tasks:
            yield task, served.evaluate(task, data)


def _base(head: Head, model: str | None, device: str | None) -> LoadedModel:
    """The base model of a state. Raises SpecError for one that cannot be used."""
    spec = head.spec.model if model is None else head.spec.model.model_copy(update={"name": model})
    loaded = load_model(spec, device or local_device())
    if loaded.faults:
        raise SpecError("\n".join(loaded.faults))
    return loaded
