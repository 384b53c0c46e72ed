"""From a request in OpenAI's form to its answers: checked, waited for, answered here or upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raycl.errors import SpecError
from raycl.files import Json
from raycl.use.serving.batching import Batcher, Full, Stopped
from raycl.use.serving.desk import Desk, Key, Question
from raycl.use.serving.engine import Engine, Outcome, RouteEngine, heads_of
from raycl.use.serving.forms import ChatAsked, CompletionAsked, Refusal, Reply, cut
from raycl.use.serving.upstream import Forward, Upstream


@dataclass(frozen=True)
class Serving:
    """How states are served."""

    store: str | None = None
    """Where the stages are; none = where the runs put them."""
    model: str | None = None
    """Where the base model lies now; none = where the runs had it."""
    device: str | None = None
    """None = a GPU if there is one."""
    max_batch: int = 16
    """Prompts that are answered together at most."""
    max_waiting: int = 256
    """Prompts that wait at most; a request that finds no room is refused (429)."""
    max_tokens: int = 1024
    """Longest answer that may be asked for, in tokens."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests must bring; none = they need none."""
    upstream: Upstream | None = None
    """Who answers what is routed here; none = raycl itself."""

    def __post_init__(self) -> None:
        """Raises SpecError for a bound below 1 and an empty token."""
        for name in ("max_batch", "max_waiting", "max_tokens"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: {getattr(self, name)}; allowed: 1 or more")
        if self.token == "":
            raise SpecError("token: is empty; allowed: some text, or none")


class Front:
    """Everything behind the HTTP. Made before an event loop runs; `start` and `stop` are called in it."""

    def __init__(self, runs: Sequence[str], serving: Serving) -> None:
        """Raises UserError for runs that cannot be served so."""
        self.heads = heads_of(runs, serving.store)
        self.serving = serving
        self.answered = 0
        """Requests that got an answer."""
        self.changed: Callable[[], None] = lambda: None
        """Hears, in another thread, that the model is ready and that it has broken."""
        self._forward = Forward(serving.upstream, self.heads) if serving.upstream else None
        kind = RouteEngine if serving.upstream else Engine
        self._engine = kind(self.heads, serving.model, serving.device, serving.max_tokens)
        self._batcher: Batcher[Key, Question, Outcome] = Batcher(
            self._engine, serving.max_batch, serving.max_waiting, lambda: self.changed()
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._batcher.ready

    @property
    def waiting(self) -> int:
        """Prompts that wait for their turn."""
        return self._batcher.waiting

    @property
    def fault(self) -> BaseException | None:
        """Why nothing is answered any more."""
        return self._batcher.fault

    @property
    def desk(self) -> Desk:
        """What checks requests. Raises Refusal (503) while there is no model."""
        if self._engine.desk is None or not self.ready:
            raise Refusal(503, "the model is not ready; ask again later", code="not_ready")
        return self._engine.desk

    def start(self) -> None:
        """Begin to load the model."""
        self._batcher.start()

    async def stop(self) -> None:
        """Answer what waits, and put the model away."""
        await asyncio.to_thread(self._batcher.stop)
        if self._forward is not None:
            await self._forward.close()

    async def replies(self, asked: CompletionAsked | ChatAsked) -> list[Reply]:
        """The answers to a request, one for each prompt. Where this is cancelled, what still waits is not worked for.

        Raises Refusal.
        """
        count, room = len(asked.prompt) if isinstance(asked, CompletionAsked) else 1, self.serving.max_waiting
        if count > room:
            raise Refusal(400, f"prompt: {count} texts; allowed: up to {room} in one request", "prompt")
        key, questions = await asyncio.to_thread(self.desk.questions, asked)
        lost = max(one.lost for one in questions)
        if lost and self._forward is not None:
            message = (
                f"prompt: is {lost} tokens too long, which only raycl itself cuts as when it is scored; shorten it"
            )
            raise Refusal(400, message, "prompt", "context_length_exceeded")
        try:
            futures = self._batcher.ask(key, questions)
        except Full:
            message = f"{room} prompts wait at most, and there is no room for {count} more; ask again later"
            raise Refusal(429, message, code="too_many_waiting") from None
        except Stopped:
            raise _ended() from None
        try:
            found = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except Stopped:
            raise _ended() from None
        pairs = zip(questions, found, strict=True)
        replies = await asyncio.gather(*(self._reply(key, one, outcome, asked.stop or []) for one, outcome in pairs))
        self.answered += 1
        return replies

    async def _reply(self, key: Key, question: Question, outcome: Outcome, stops: list[str]) -> Reply:
        """An answer as it is given: up to the first of `stops`, wherever it was made."""
        answer = outcome.answer
        if self._forward is None:
            text, stopped = cut(answer.text, stops)
            finish = "stop" if stopped or answer.ended else "length"
            return Reply(text, finish, question.tokens, answer.tokens, outcome.further)
        assert answer.route is not None
        how: Json = {"max_tokens": key.tokens} | ({"stop": stops} if stops else {})
        reply = await self._forward.ask(key.name, question.example, answer.route, how)
        return Reply(reply.text, reply.finish, reply.prompt_tokens, reply.tokens, outcome.further)


def _ended() -> Refusal:
    return Refusal(503, "the server is ending, or its model broke; ask another one", code="not_ready")
