"""Another server of OpenAI's API that holds the base model and an adapter per task: it answers what is routed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from raycl.errors import SpecError
from raycl.files import Json
from raycl.methods.common.base import Route
from raycl.models.load import base_place
from raycl.tasks.task import Example
from raycl.use.heads import Head
from raycl.use.serving.forms import Refusal, Reply

SECONDS = 300.0
"""How long an answer is waited for."""
CHARACTERS_OF_AN_ERROR = 300


@dataclass(frozen=True)
class Upstream:
    """Where the server is, and what it calls the base model."""

    url: str
    """With or without `/v1` at its end."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that it asks for."""
    base: str | None = None
    """Its name of the base model, which inputs like no task go to; none = what an export's adapters say their base is."""
    adapter: str = "{task}"
    """Its name of a task's adapter, with `{task}` for the task."""
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        """Raises SpecError for a name that is the same for all tasks."""
        if "{task}" not in self.adapter:
            raise SpecError(f"--upstream-adapter {self.adapter}: has no {{task}} in it; allowed: such as BASE:{{task}}")

    @property
    def root(self) -> str:
        """The address before `/v1/...`. Raises SpecError for what is none."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SpecError(f"--upstream {self.url}: is no address; allowed: http://HOST:PORT or https://...")
        return self.url.rstrip("/").removesuffix("/v1")


def check_routed(heads: Mapping[str, Head]) -> None:
    """Raises SpecError for a state that does not choose one task's adapter by the input."""
    for name, head in heads.items():
        params = head.spec.method
        if getattr(params, "routing", None) != "hard":
            raise SpecError(
                f"--upstream: {name} is of the method {params.name}, which does not choose one adapter by the input; "
                "allowed: route_lora with method.routing=hard; next step: leave out --upstream, and raycl itself answers"
            )


class Forward:
    """Asks the upstream."""

    def __init__(self, upstream: Upstream, heads: Mapping[str, Head]) -> None:
        """Raises SpecError for an address that is none, and for heads that are not routed."""
        check_routed(heads)
        self._bases = {name: upstream.base or base_place(head.spec.model) for name, head in heads.items()}
        headers = {"Authorization": f"Bearer {upstream.token}"} if upstream.token else {}
        self._seconds, self._adapter = upstream.seconds, upstream.adapter
        # What waits for the model here is bounded, and that bounds the connections.
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(
            base_url=upstream.root, headers=headers, timeout=upstream.seconds, limits=limits
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, name: str, example: Example, route: Route, how: Json) -> Reply:
        """The answer to a prompt by the adapter of its route, or by the base model. `how` is `max_tokens` and `stop`.

        Raises Refusal: 504 where the upstream does not answer in time, 502 where it cannot be reached, refuses, or answers
        in another form.
        """
        model = self._adapter.replace("{task}", route.task) if route.known else self._bases[name]
        body: Json = {"model": model, "temperature": 0, **how}
        if example.chat is None:
            place, asked = "/v1/completions", {"prompt": example.prompt}
        else:
            turns = [*example.chat, ("user", example.prompt)]
            place, asked = (
                "/v1/chat/completions",
                {"messages": [{"role": role, "content": text} for role, text in turns]},
            )
        return _reply(await self._post(place, body | asked))

    async def _post(self, place: str, body: Json) -> Any:
        try:
            found = await self._client.post(place, json=body)
        except httpx2.TimeoutException:
            raise Refusal(504, f"upstream: gave no answer in {self._seconds:g} s", code="upstream_timeout") from None
        except httpx2.HTTPError as error:
            message = f"upstream: cannot be reached ({type(error).__name__})"
            raise Refusal(502, message, code="upstream_error") from None
        if found.status_code != 200:
            message = f"upstream: refused model {body['model']!r} ({found.status_code}: {_said(found)})"
            raise Refusal(502, message, code="upstream_error")
        try:
            return found.json()
        except ValueError:
            raise _odd() from None


def _reply(found: Any) -> Reply:
    """The one answer in an upstream's. Raises Refusal for another form."""
    try:
        (choice,) = found["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        usage = found.get("usage") or {}
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        counts = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        return Reply(text.strip(), finish, *counts)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _odd() from None


def _odd() -> Refusal:
    return Refusal(502, "upstream: answers in another form than OpenAI's", code="upstream_error")


def _said(found: httpx2.Response) -> str:
    """What an upstream says of a refusal."""
    try:
        said = found.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = found.text
    return " ".join(str(said).split())[:CHARACTERS_OF_AN_ERROR]
