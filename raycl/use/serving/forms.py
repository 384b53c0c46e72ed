"""The forms of OpenAI's API that are taken and given: completions, chats, errors. What would be ignored is refused."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from raycl.errors import problems
from raycl.files import Json

CHARACTERS_OF_A_PROBLEM = 300
"""How much of a problem is said: it may quote a whole body."""


class Refusal(Exception):
    """A request that is not answered, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        """`status` is of HTTP, `param` the field that is at fault."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> Json:
        """As JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


def _listed(value: Any) -> Any:
    """One text as a list of one."""
    if not isinstance(value, str | list):
        raise ValueError("allowed: a text, or a list of texts")
    return [value] if isinstance(value, str) else value


def _joined(value: Any) -> Any:
    """The parts of a message as one text, where all of them are text."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(part, dict) and part.get("type") == "text" and "text" in part for part in value):
        raise ValueError("allowed: a text, or parts of the type `text`")
    return "".join(str(part["text"]) for part in value)


def _greedy(value: float | None) -> float | None:
    if value:
        raise ValueError("allowed: 0 or nothing, since answers are greedy, as they were scored; leave it out")
    return value


def _one(value: int | None) -> int | None:
    if value not in (None, 1):
        raise ValueError("allowed: 1 or nothing, since a greedy answer is always the same; leave it out")
    return value


def _ends_with_the_user(value: list[Message]) -> list[Message]:
    if value[-1].role != "user":
        raise ValueError(f"the last message is of the role {value[-1].role}; allowed: user, who is answered")
    return value


Texts = Annotated[list[str], BeforeValidator(_listed)]
Zero = Annotated[float | None, AfterValidator(_greedy)]


DEFAULTS: Json = {"echo": False, "best_of": 1, "logprobs": False, "logit_bias": {}, "suffix": ""}
"""Fields that raycl does not have, with the values that ask for nothing: some clients send all fields there are."""


def _without_defaults(body: Any) -> Any:
    """A body without fields that ask for nothing."""
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in DEFAULTS or value not in (None, DEFAULTS[name])}


class Form(BaseModel):
    """What no field is for is refused, and so is a value of another kind, such as a number in quotes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Extension(Form):
    """What OpenAI's API does not have."""

    task: str | None = Field(default=None, description="put the text into this task's prompt")
    explain: bool = Field(default=False, description="say whose weights answered")


class Asked(Form):
    """What both kinds of requests have."""

    model: str = Field(description="a name that /v1/models lists")
    max_tokens: Annotated[int | None, Field(ge=1)] = Field(
        default=None, description="longest answer, its end token included; none = as scored"
    )
    stop: Texts | None = Field(default=None, max_length=4, description="texts before which an answer is cut")
    temperature: Zero = Field(default=None, description="0: answers are greedy")
    n: Annotated[int | None, AfterValidator(_one)] = Field(default=None, description="answers per prompt: 1")
    stream: bool | None = Field(default=None, description="send the answer, once it is whole, as one event")
    stream_options: dict[str, Any] | None = Field(default=None, description="`include_usage`")
    frequency_penalty: Zero = Field(default=None, description="0")
    presence_penalty: Zero = Field(default=None, description="0")
    top_p: float | None = Field(default=None, description="without effect on greedy answers")
    seed: int | None = Field(default=None, description="without effect on greedy answers")
    user: str | None = Field(default=None, description="without effect")
    raycl: Extension = Field(default=Extension(), description="raycl's own")

    _defaults = model_validator(mode="before")(_without_defaults)


class CompletionAsked(Asked):
    """The body of /v1/completions."""

    prompt: Annotated[Texts, Field(min_length=1)] = Field(description="a text, or several")


class Message(Form):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]
    name: str | None = None


class ChatAsked(Asked):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), AfterValidator(_ends_with_the_user)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = Field(
        default=None, description="the newer name of max_tokens"
    )


F = TypeVar("F", bound=Asked)


def read(form: type[F], body: bytes) -> F:
    """A request. Raises Refusal (400) with all that is wrong with it."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        lines = [line[:CHARACTERS_OF_A_PROBLEM] for line in problems(error)]
        place = error.errors()[0]["loc"]
        raise Refusal(400, "; ".join(lines), str(place[0]) if place else None) from None


@dataclass(frozen=True)
class Reply:
    """An answer as it is given."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int
    """Of the answer, as they were generated."""
    further: Json = field(default_factory=dict)
    """Goes under `raycl`, if there is something."""


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of `stops`, and whether there is one; empty ones do not count."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def answered(asked: Asked, replies: Sequence[Reply]) -> Json:
    """The answer to a request, one choice for each prompt."""
    chat = isinstance(asked, ChatAsked)
    return _head(asked) | {
        "object": "chat.completion" if chat else "text_completion",
        "choices": [_choice(index, one, "message" if chat else "text") for index, one in enumerate(replies)],
        "usage": _usage(replies),
    }


def events(asked: Asked, replies: Sequence[Reply]) -> str:
    """The same as server-sent events: each choice whole in one chunk, and the usage in one more where it was asked for."""
    chat = isinstance(asked, ChatAsked)
    head = _head(asked) | {"object": "chat.completion.chunk" if chat else "text_completion"}
    chunks = [
        head | {"choices": [_choice(index, one, "delta" if chat else "text")]} for index, one in enumerate(replies)
    ]
    if (asked.stream_options or {}).get("include_usage"):
        chunks.append(head | {"choices": [], "usage": _usage(replies)})
    lines = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def _head(asked: Asked) -> Json:
    kind = "chatcmpl" if isinstance(asked, ChatAsked) else "cmpl"
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}


def _choice(index: int, reply: Reply, place: str) -> Json:
    text = reply.text if place == "text" else {"role": "assistant", "content": reply.text}
    found = {"index": index, place: text, "finish_reason": reply.finish, "logprobs": None}
    return found | ({"raycl": reply.further} if reply.further else {})


def _usage(replies: Sequence[Reply]) -> Json:
    read, written = sum(one.prompt_tokens for one in replies), sum(one.tokens for one in replies)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
