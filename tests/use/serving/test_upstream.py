"""Routes are found here and answers come from another server: texts, models, errors of all kinds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycl import Serving, SpecError, Upstream, find_head, load, make_app
from raycl.models.load import base_place
from tests.kit.serving import StandIn, client_of, post
from tests.kit.trained import ORDER, Trained

TEXTS = ["Entry: oak", "Text: a dull film", "Entry: wolf", "a fine film", "x", "Text: not bad at all"]
NAME = "route_lora-llama"


@pytest.fixture(scope="module")
def folder(trained: Trained) -> str:
    return str(trained("route_lora"))


@pytest.fixture(scope="module")
def adapters(folder: str) -> Iterator[StandIn]:
    """Holds the adapter of each task under the task's name, and answers with it alone."""
    head = find_head(folder)
    keys = dict(zip(head.spec.tasks, head.stages, strict=True))
    one_at_a_time = threading.Lock()
    held = {task: load(key, head.store.uri) for task, key in keys.items()}

    def answering(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with one_at_a_time:
            (answer,) = held[body["model"]].generate([body["prompt"]], body["max_tokens"])
        usage = {"prompt_tokens": 7, "completion_tokens": answer.tokens}
        finish = "stop" if answer.ended else "length"
        return 200, {"choices": [{"text": f" {answer.text}\n", "finish_reason": finish}], "usage": usage}

    with StandIn(answering) as standing:
        yield standing
    for served in held.values():
        served.close()


def complete(client: Any, prompt: Any, **body: Any) -> Any:
    """The response to a completion."""
    return client.post("/v1/completions", json={"model": NAME, "prompt": prompt} | body)


def test_what_the_upstream_answers_is_what_raycl_would(folder: str, adapters: StandIn) -> None:
    """Each text by the adapter of its route, which is said; both tasks' adapters are asked."""
    with client_of(folder, upstream=Upstream(f"{adapters.url}/v1/", "secret")) as client, load(folder) as served:
        for text in TEXTS:
            (answer,) = served.generate([text], explain=True)
            found = complete(client, text).json()
            (choice,) = found["choices"]
            assert choice["text"] == answer.text
            assert choice["raycl"] == {"route": answer.explained(())["route"]}
            assert adapters.asked[-1][1]["model"] == choice["raycl"]["route"]["task"]
            assert found["usage"]["prompt_tokens"] == 7
        (one,) = served.generate(TEXTS[:1], task="roget")
        assert complete(client, TEXTS[0], raycl={"task": "roget"}).json()["choices"][0]["text"] == one.text
        assert adapters.asked[-1][1]["prompt"] == served.prompt("roget", TEXTS[0]).prompt
        several = complete(client, TEXTS).json()["choices"]
        assert [choice["text"] for choice in several] == [one.text for one in served.generate(TEXTS)]
    assert {body["model"] for _, body in adapters.asked} == set(ORDER)
    assert adapters.headers[-1]["Authorization"] == "Bearer secret"


def test_what_is_like_no_task_goes_to_the_base_model(trained: Trained, model_folders: dict[str, Path]) -> None:
    """Under the name that the upstream has for it: where the base model lies, if nothing else is said."""
    folder = str(trained("route_lora", name="careful", unknown="base", unknown_quantile=0.01))
    head = find_head(folder)
    given: dict[str, Any] = {"choices": [{"text": "an answer", "finish_reason": "length"}]}
    with StandIn(lambda path, body: (200, given)) as standing:
        for base, expected in ((None, base_place(head.spec.model)), ("base", "base")):
            with client_of(folder, upstream=Upstream(standing.url, base=base)) as client:
                body = {"model": "careful", "prompt": "words unlike any", "max_tokens": 3, "stop": "."}
                (choice,) = client.post("/v1/completions", json=body).json()["choices"]
            assert not choice["raycl"]["route"]["known"]
            assert (choice["text"], choice["finish_reason"]) == ("an answer", "length")
            sent = {"prompt": "words unlike any", "max_tokens": 3, "stop": ["."], "temperature": 0}
            assert standing.asked[-1] == ("/v1/completions", {"model": expected, **sent})
    assert base_place(head.spec.model) == str(model_folders["llama"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {"error": {"message": "no such\nmodel"}}), "refused model 'roget' (404: no such model)"),
        ((500, "<html>broken</html>"), "(500: <html>broken</html>)"),
        ((307, ""), "(307: )"),
        ((200, "no json"), "answers in another form"),
        ((200, {"choices": []}), "answers in another form"),
        ((200, {"choices": [{"text": None}]}), "answers in another form"),
        ((200, ["x"]), "answers in another form"),
    ],
)
def test_what_an_upstream_may_do_wrong(folder: str, answer: tuple[int, Any], message: str) -> None:
    """502 with what it said."""
    with StandIn(lambda path, body: answer) as standing, client_of(folder, upstream=Upstream(standing.url)) as client:
        found = complete(client, "Entry: oak", raycl={"task": "roget"})
    assert found.status_code == 502
    assert found.json()["error"]["type"] == "server_error" and message in found.json()["error"]["message"]


def test_an_upstream_that_is_away_or_late(folder: str) -> None:
    """502 and 504; the next request is answered."""

    over = threading.Event()

    def late(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body["max_tokens"] == 1:
            assert over.wait(60)
        return 200, {"choices": [{"text": "x"}]}

    with StandIn(late) as standing:
        with client_of(folder, upstream=Upstream(standing.url, seconds=2)) as client:
            found = complete(client, "Entry: oak", max_tokens=1)
            assert found.status_code == 504 and "no answer in 2 s" in found.json()["error"]["message"]
            assert complete(client, "Entry: oak", max_tokens=2).status_code == 200
        over.set()
        gone = standing.url
    with client_of(folder, upstream=Upstream(gone)) as client:
        found = complete(client, "Entry: oak")
        assert found.status_code == 502 and "cannot be reached" in found.json()["error"]["message"]
        long = complete(client, "dull " * 40, raycl={"task": "snippets"})
        assert long.status_code == 400 and "tokens too long" in long.json()["error"]["message"]


def test_an_upstream_may_name_adapters_otherwise(folder: str) -> None:
    """SGLang's names have the base model in them."""
    given: dict[str, Any] = {"choices": [{"text": "x"}]}
    with StandIn(lambda path, body: (200, given)) as standing:
        with client_of(folder, upstream=Upstream(standing.url, adapter="base:{task}")) as client:
            found = complete(client, "Entry: oak").json()
        task = found["choices"][0]["raycl"]["route"]["task"]
        assert standing.asked[-1][1]["model"] == f"base:{task}"


def test_a_chat_goes_there_as_one(trained_chats: Trained) -> None:
    """Its messages, since the template is the upstream's; routed as the template here has it."""
    given: dict[str, Any] = {
        "choices": [{"message": {"role": "assistant", "content": " fine "}, "finish_reason": "stop"}]
    }
    messages = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Entry: oak"}]
    folder = str(trained_chats("route_lora"))
    with (
        StandIn(lambda path, body: (200, given)) as standing,
        client_of(folder, upstream=Upstream(standing.url)) as client,
        load(folder) as served,
    ):
        found = client.post("/v1/chat/completions", json={"model": NAME, "messages": messages}).json()
        (answer,) = served.generate(["[system]Be short</s>[user]Entry: oak</s>[assistant]"])
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "fine"}
    assert choice["raycl"]["route"] == answer.explained(())["route"]
    ((path, sent),) = standing.asked
    assert path == "/v1/chat/completions" and sent["messages"] == messages
    assert sent["model"] == choice["raycl"]["route"]["task"]


def test_what_has_no_upstream(trained: Trained) -> None:
    """A method that does not choose one adapter by the input, and an address that is none."""
    elsewhere = Serving(upstream=Upstream("http://127.0.0.1:1"))
    for run in (trained("gain_lora"), trained("route_lora", name="soft", routing="soft")):
        with pytest.raises(SpecError, match="does not choose one adapter by the input"):
            make_app(str(run), elsewhere)
    for url in ("127.0.0.1:8000", "ftp://x", "http://", "http://x/?y"):
        with pytest.raises(SpecError, match="is no address"):
            make_app(str(trained("route_lora")), Serving(upstream=Upstream(url)))


def test_the_stand_in_is_one() -> None:
    """Of its own: it says what its function says."""
    with StandIn(lambda path, body: (418, {"error": path})) as standing:
        assert post(f"{standing.url}/v1/x", {}) == (418, {"error": "/v1/x"})
