"""The HTTP side, and all of raycl that knows FastAPI: routes, the token, the size of bodies, who went away, errors."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from raycl.files import Json
from raycl.use.serving.forms import (
    ChatAsked,
    CompletionAsked,
    Refusal,
    Reply,
    answered,
    events,
    read,
)
from raycl.use.serving.front import Front, Serving

MOST_BYTES = 4 * 2**20
"""The largest body that is read."""
RETRY_SECONDS = {429: "1", 503: "5"}
"""Status -> after how many seconds a request may come again."""
CLIENT_GONE = 499
"""What nginx notes where nobody is left to answer; nobody sees it."""


def make_app(runs: str | Sequence[str], serving: Serving | None = None) -> FastAPI:
    """An ASGI application that serves finished states in the form of OpenAI's API: what `raycl serve` runs.

    `runs` are named as in `raycl.load`. The model is loaded when the application starts up. Raises UserError for runs that
    cannot be served together, or not so.
    """
    return app_of(Front([runs] if isinstance(runs, str) else runs, serving or Serving()))


def app_of(front: Front) -> FastAPI:
    """The application before `front`, which starts and ends with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        front.start()
        yield
        await front.stop()

    # No pages on how to use it: they load scripts from elsewhere.
    app = FastAPI(title="raycl", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_health(front))
    app.include_router(_api(front))
    app.add_exception_handler(Refusal, lambda request, error: _refused(error))
    app.add_exception_handler(
        404, lambda request, error: _refused(Refusal(404, f"{request.url.path}: is nothing here"))
    )
    app.add_exception_handler(
        405, lambda request, error: _refused(Refusal(405, f"{request.method}: is not for {request.url.path}"))
    )
    app.add_exception_handler(
        Exception, lambda request, error: _refused(Refusal(500, "this request failed; the server's log says why"))
    )
    return app


def _health(front: Front) -> APIRouter:
    """What says how the server is; it needs no token."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Json:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> Json:
        """Requests are answered."""
        if not front.ready:
            raise Refusal(503, "the model is not ready; ask again later", code="not_ready")
        return {"status": "ready", "waiting": front.waiting}

    return router


def _api(front: Front) -> APIRouter:
    """OpenAI's routes."""

    async def allowed(request: Request) -> None:
        """Whether a request brings the token, compared in a time that does not tell how much of it is right."""
        token = front.serving.token
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers come decoded as Latin-1; a token may be any text.
        right = token is None or hmac.compare_digest(given.strip(" ").encode("latin-1"), token.encode())
        if not right or (token is not None and kind.lower() != "bearer"):
            raise Refusal(401, "Authorization: is not `Bearer` and the token of this server", code="invalid_api_key")

    router = APIRouter(prefix="/v1", dependencies=[Depends(allowed)])

    @router.get("/models")
    async def models() -> Json:
        """What `model` may be."""
        return {"object": "list", "data": front.desk.models}

    @router.post("/completions")
    async def completions(request: Request, body: Annotated[bytes, Depends(_body)]) -> Response:
        """Continue texts."""
        return await _respond(front, request, read(CompletionAsked, body))

    @router.post("/chat/completions")
    async def chats(request: Request, body: Annotated[bytes, Depends(_body)]) -> Response:
        """Answer the last message of a chat."""
        return await _respond(front, request, read(ChatAsked, body))

    return router


async def _body(request: Request) -> bytes:
    """The body, read no further than it may be long. Raises Refusal (413)."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise Refusal(413, f"the body is longer than {MOST_BYTES} bytes; allowed: up to that")
    return bytes(found)


async def _respond(front: Front, request: Request, asked: CompletionAsked | ChatAsked) -> Response:
    """The answer, unless its client goes away before."""
    work = asyncio.create_task(front.replies(asked))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=CLIENT_GONE)
        return _given(asked, work.result())
    finally:
        gone.cancel()
        work.cancel()


def _given(asked: CompletionAsked | ChatAsked, replies: list[Reply]) -> Response:
    """The answer in the form that was asked for."""
    if asked.stream:
        return Response(events(asked, replies), media_type="text/event-stream")
    return JSONResponse(answered(asked, replies))


async def _gone(request: Request) -> None:
    """Comes back when the client has gone away; the body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(error: Exception) -> Response:
    """An error in OpenAI's form."""
    assert isinstance(error, Refusal)
    headers = {"Retry-After": RETRY_SECONDS[error.status]} if error.status in RETRY_SECONDS else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, status_code=error.status, headers=headers)
