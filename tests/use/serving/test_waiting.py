"""Requests whose turn has not come: before the model is there, with no room left, of clients that have gone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from raycl import Serving, make_app
from raycl.tasks.task import Example
from raycl.use.served import Served
from tests.kit.serving import SECONDS, client_of, until
from tests.kit.trained import Trained

BODY = {"model": "gain_lora-llama", "prompt": "x"}


class Held:
    """Stands for `Served.answer`: notes the prompts and answers once it is let go on."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.real = answer
        self.go, self.began = threading.Event(), threading.Event()
        self.prompts: list[str] = []

    def __call__(self, served: Served, examples: Sequence[Example], *arguments: Any) -> Any:
        self.prompts += [example.prompt for example in examples]
        self.began.set()
        assert self.go.wait(SECONDS)
        return self.real(served, examples, *arguments)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """No answer is made before it is let go on."""
    one = Held(Served.answer)
    monkeypatch.setattr(Served, "answer", lambda *arguments: one(*arguments))
    return one


def test_before_the_model_is_there(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process lives and says so; all else has to come again."""
    from raycl.use.serving import engine

    go, load_base = threading.Event(), engine.load_base

    def late(*arguments: Any) -> Any:
        assert go.wait(SECONDS)
        return load_base(*arguments)

    monkeypatch.setattr(engine, "load_base", late)
    with TestClient(make_app(str(trained("gain_lora")))) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for found in (client.get("/ready"), client.get("/v1/models"), client.post("/v1/completions", json=BODY)):
            assert found.status_code == 503 and found.headers["retry-after"] == "5"
            assert found.json()["error"]["type"] == "server_error"
        go.set()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.get("/ready").json() == {"status": "ready", "waiting": 0}
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_request_that_fails_says_nothing_of_the_inside(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(Served, "answer", broken)
    with client_of(str(trained("gain_lora"))) as client:
        found = client.post("/v1/completions", json=BODY)
        assert found.status_code == 500 and "secret" not in found.text
        assert found.json()["error"]["type"] == "server_error"
        monkeypatch.undo()
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_without_room_and_with_room_of_those_who_left(trained: Trained, held: Held) -> None:
    """One is answered, one waits, the third must come again; the one that waits goes, and is not worked for."""
    app = make_app(str(trained("gain_lora")), Serving(max_waiting=1))

    async def story() -> None:
        async with app.router.lifespan_context(app):
            while (await called(app, "GET", "/ready"))[0] != 200:
                await asyncio.sleep(0.02)
            first = asyncio.create_task(asked(app, "first"))
            await asyncio.to_thread(held.began.wait, SECONDS)
            leave = asyncio.Event()
            second = asyncio.create_task(asked(app, "second", leave))
            while json.loads((await called(app, "GET", "/ready"))[2])["waiting"] == 0:
                await asyncio.sleep(0.02)
            status, headers, body = await asked(app, "third")
            assert status == 429 and headers[b"retry-after"] == b"1"
            assert json.loads(body)["error"]["code"] == "too_many_waiting"
            leave.set()
            await second
            fourth = asyncio.create_task(asked(app, "fourth"))
            while json.loads((await called(app, "GET", "/ready"))[2])["waiting"] == 0:
                await asyncio.sleep(0.02)
            held.go.set()
            assert [(await one)[0] for one in (first, fourth)] == [200, 200]

    asyncio.run(asyncio.wait_for(story(), SECONDS))
    assert held.prompts == ["first", "fourth"]


def asked(
    app: Any, prompt: str, leave: asyncio.Event | None = None
) -> Awaitable[tuple[int, dict[bytes, bytes], bytes]]:
    """Send a completion; the client goes away when `leave` is set, or never."""
    return called(app, "POST", "/v1/completions", json.dumps(BODY | {"prompt": prompt}).encode(), leave)


async def called(
    app: Any, method: str, path: str, body: bytes = b"", leave: asyncio.Event | None = None
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request, without a network."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "root_path": ""}
    await app(scope | {"http_version": "1.1", "scheme": "http", "server": ("test", 80)}, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content
