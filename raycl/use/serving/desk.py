"""What is asked, checked against what is served before it waits for the model: which state, which prompts, how long."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycl.errors import DataError, SpecError, shown
from raycl.files import Json
from raycl.models.load import LoadedModel
from raycl.tasks.task import Example
from raycl.use.heads import Head
from raycl.use.prompts import Prompts, encoder_of
from raycl.use.serving.forms import Asked, ChatAsked, CompletionAsked, Refusal

CHARACTERS_PER_TOKEN = 64
"""No chat has more on average: one that must be too long is refused before its template is filled in."""


@dataclass(frozen=True)
class Key:
    """What is answered together agrees in this."""

    name: str
    """Of the head."""
    task: str | None
    """Whose weights answer, where the method must be told."""
    tokens: int
    """Longest answer."""
    chat: bool
    """Whether an answer ends with its message."""


@dataclass(frozen=True)
class Question:
    """One prompt."""

    example: Example
    tokens: int
    """Of the prompt as the model reads it."""
    lost: int = 0
    """Tokens at the end of the text that were cut, as when it is scored."""
    explain: bool = False


class Desk:
    """Checks requests. Any thread may ask; the tokenizer is a copy, so that the model's thread keeps its own."""

    def __init__(self, heads: Mapping[str, Head], loaded: LoadedModel, most_tokens: int) -> None:
        """`most_tokens` bounds every answer."""
        self._heads, self._most, self._positions = heads, most_tokens, loaded.positions
        tokenizer, both = copy.deepcopy(loaded.tokenizer), loaded.backbone.encoder_decoder
        self._prompts = {name: Prompts(head, encoder_of(head, tokenizer, both)) for name, head in heads.items()}
        self._lock = threading.Lock()

    @property
    def models(self) -> list[Json]:
        """What `model` may be: a head, or where its method must be told whose inputs come one for each task."""
        return [
            {"id": one, "object": "model", "created": 0, "owned_by": "raycl", "raycl": facts}
            for name, head in self._heads.items()
            for one, facts in _listed(name, head)
        ]

    def questions(self, asked: CompletionAsked | ChatAsked) -> tuple[Key, list[Question]]:
        """What a request asks. Raises Refusal."""
        name, task = self._served(asked)
        prompts = self._prompts[name]
        with self._lock:
            examples = _chat(prompts, asked) if isinstance(asked, ChatAsked) else _texts(prompts, asked)
            tokens = self._tokens(asked, prompts)
            questions = [self._question(prompts, one, asked, tokens) for one in examples]
        return Key(name, task, tokens, examples[0].chat is not None), questions

    def _served(self, asked: Asked) -> tuple[str, str | None]:
        """The head, and whose weights answer, where the method must be told."""
        name, _, task = asked.model.partition("/")
        head = self._heads.get(name)
        if head is None or (task and (not head.needs_task or task not in head.spec.tasks)):
            names = ", ".join(one["id"] for one in self.models)
            raise Refusal(
                404, f"model: {shown(asked.model)} is not served here; allowed: {names}", "model", "model_not_found"
            )
        if not head.needs_task:
            return name, None
        said = asked.raycl.task
        if task and said and task != said:
            raise Refusal(
                400, f"raycl.task: {shown(said)}, but model {shown(asked.model)} is of {task}; name one task", "raycl"
            )
        try:
            head.keys(task or said)
        except SpecError:
            tasks = ", ".join(f"{name}/{one}" for one in head.spec.tasks)
            message = (
                f"model: {shown(asked.model)}, whose method {head.spec.method.name} must be told whose inputs come; "
                f"allowed: {tasks}; or name one of these tasks in raycl.task"
            )
            raise Refusal(400, message, "model") from None
        return name, task or said

    def _tokens(self, asked: Asked, prompts: Prompts) -> int:
        """The longest answer."""
        newer = asked.max_completion_tokens if isinstance(asked, ChatAsked) else None
        wanted = newer or asked.max_tokens
        if wanted is None:
            return min(self._most, prompts.limit(asked.raycl.task))
        if wanted > self._most:
            field = "max_completion_tokens" if newer else "max_tokens"
            raise Refusal(400, f"{field}: {wanted}; allowed: 1 to {self._most}", field)
        return wanted

    def _question(self, prompts: Prompts, example: Example, asked: Asked, tokens: int) -> Question:
        """A prompt that fits. Of a text in a task's prompt the end is cut, as when it is scored, and the answer says so."""
        encoder, field = prompts.encoder, "messages" if isinstance(asked, ChatAsked) else "prompt"
        try:
            length = encoder.prompt_length(example)
            encoder.ends(example.chat is not None)
        except DataError as error:
            raise Refusal(400, f"{field}: {error}", field) from None
        if not length:
            raise Refusal(400, f"{field}: is empty; allowed: a text of at least one token", field)
        most = encoder.max_source
        if length > most and asked.raycl.task is None:
            raise Refusal(400, _too_long(field, length, most), field, "context_length_exceeded")
        length, lost = min(length, most), max(0, length - most)
        read = 0 if encoder.encoder_decoder else length
        if self._positions is not None and read + tokens > self._positions:
            room = max(0, self._positions - read)
            message = f"{field}: {length} tokens leave the model room for {room}; allowed: max_tokens up to that"
            raise Refusal(400, message, "max_tokens", "context_length_exceeded")
        return Question(example, length, lost, asked.raycl.explain)


def _listed(name: str, head: Head) -> Sequence[tuple[str, Json]]:
    """The names under which a head is served, each with what it is."""
    facts: Json = {"method": head.spec.method.name, "stage": head.last}
    if head.needs_task:
        return [
            (f"{name}/{task}", {**facts, "stage": head.keys(task)[-1], "tasks": [task]}) for task in head.spec.tasks
        ]
    return [(name, {**facts, "tasks": list(head.spec.tasks)})]


def _texts(prompts: Prompts, asked: CompletionAsked) -> list[Example]:
    """The prompts of a completion."""
    task = asked.raycl.task
    if task is None:
        return [prompts.whole(text) for text in asked.prompt]
    try:
        return [prompts.of_task(task, text) for text in asked.prompt]
    except (SpecError, DataError) as error:
        raise Refusal(400, f"raycl.{error}", "raycl") from None


def _chat(prompts: Prompts, asked: ChatAsked) -> list[Example]:
    """The prompt of a chat."""
    if asked.raycl.task is not None:
        raise Refusal(
            400,
            "raycl.task: puts a text into a task's prompt, and a chat is a prompt; next step: ask /v1/completions, or, to "
            "say whose weights answer, name the model NAME/TASK",
            "raycl",
        )
    encoder = prompts.encoder
    if not getattr(encoder.tokenizer, "chat_template", None):
        raise Refusal(
            400,
            "messages: the model's tokenizer has no chat template; next step: ask /v1/completions",
            "messages",
        )
    characters = sum(len(message.content) for message in asked.messages)
    if characters > CHARACTERS_PER_TOKEN * encoder.max_source:
        raise Refusal(400, _too_long("messages", characters, encoder.max_source, "characters"), "messages")
    *earlier, last = asked.messages
    return [prompts.whole(last.content, tuple((one.role, one.content) for one in earlier))]


def _too_long(field: str, length: int, most: int, what: str = "tokens") -> str:
    return f"{field}: {length} {what}; allowed: up to {most} tokens, the run's data.max_source_tokens"
