"""The server's forms: what is answered, what is refused and how, with the application in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from raycl import SpecError, find_head, load, make_app
from raycl.use.served import Served
from tests.kit.serving import client_of
from tests.kit.trained import Trained

NAME = "gain_lora-llama"


@pytest.fixture(scope="module")
def gated(trained: Trained) -> Iterator[TestClient]:
    """Serves a gated method."""
    with client_of(str(trained("gain_lora")), max_tokens=20, max_waiting=4) as client:
        yield client


@pytest.fixture(scope="module")
def alone(trained: Trained) -> Iterator[Served]:
    """The same state without a server."""
    with load(str(trained("gain_lora"))) as served:
        yield served


def complete(client: TestClient, prompt: Any = "Entry: oak", **body: Any) -> Any:
    """The JSON of an answer to a completion."""
    found = client.post("/v1/completions", json={"model": NAME, "prompt": prompt} | body)
    assert found.status_code == 200, found.text
    return found.json()


def error_of(client: TestClient, status: int, place: str = "completions", **body: Any) -> Any:
    """The error of a request that is refused with a status, in OpenAI's form."""
    found = client.post(f"/v1/{place}", json={"model": NAME} | body)
    assert found.status_code == status, found.text
    assert set(found.json()) == {"error"}
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error


def test_a_completion_is_the_states_answer(gated: TestClient, alone: Served) -> None:
    """As long as it is scored if nothing else is said; a prompt, or several, each with its choice; tokens are counted."""
    texts = ["Entry: oak", "A longer text of another length", "x"]
    one = complete(gated)
    assert one["object"] == "text_completion" and one["model"] == NAME and one["id"].startswith("cmpl-")
    assert one["choices"][0]["text"] == alone.generate(["Entry: oak"])[0].text
    several = complete(gated, texts, max_tokens=5)
    assert [(choice["index"], choice["text"]) for choice in several["choices"]] == [
        (place, alone.generate([text], 5)[0].text) for place, text in enumerate(texts)
    ]
    lengths = [len(alone.tokenizer(text).input_ids) for text in texts]
    written = [answer.tokens for answer in alone.generate(texts, 5)]
    assert several["usage"] == {
        "prompt_tokens": sum(lengths),
        "completion_tokens": sum(written),
        "total_tokens": sum(lengths) + sum(written),
    }


def test_a_text_in_a_tasks_prompt(gated: TestClient, alone: Served) -> None:
    """As `raycl generate --task`; what is cut of a long text is said."""
    (answer,) = alone.generate(["Entry: oak"], explain=True, task="roget")
    (choice,) = complete(gated, raycl={"task": "roget", "explain": True})["choices"]
    assert choice["text"] == answer.text and choice["raycl"] == answer.explained(alone.branches)
    assert choice["raycl"]["branches"]["roget"] > 0 and len(choice["raycl"]["layers"]) == 4
    assert "raycl" not in complete(gated, raycl={"task": "snippets"})["choices"][0]
    text = "Text: " + "dull " * 40
    (cut,) = complete(gated, text, raycl={"task": "snippets"})["choices"]
    assert cut["text"] == alone.generate([text], task="snippets")[0].text
    whole = len(alone.tokenizer(alone.prompt("snippets", text).prompt).input_ids)
    assert cut["raycl"] == {"cut": whole - 48}


def test_an_answer_ends_at_a_stop_its_end_or_its_limit(gated: TestClient, alone: Served) -> None:
    (answer,) = alone.generate(["Entry: oak"], 6)
    assert not answer.ended and len(answer.text) > 2
    (choice,) = complete(gated, max_tokens=6)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (answer.text, "length")
    stop = answer.text[2]
    for stops in (stop, ["never there", "", stop]):
        (choice,) = complete(gated, max_tokens=6, stop=stops)["choices"]
        assert (choice["text"], choice["finish_reason"]) == (answer.text[: answer.text.index(stop)], "stop")


def test_a_stream_is_one_event_with_the_whole_answer(gated: TestClient) -> None:
    whole = complete(gated, max_tokens=4)
    body = {"model": NAME, "prompt": "Entry: oak", "max_tokens": 4, "stream": True}
    for options, usage in (({}, []), ({"stream_options": {"include_usage": True}}, [whole["usage"]])):
        found = gated.post("/v1/completions", json=body | options)
        assert found.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = found.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert chunks[0]["choices"] == whole["choices"]
        assert [(chunk["choices"], chunk["usage"]) for chunk in chunks[1:]] == [([], one) for one in usage]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": 5}, "prompt", "prompt: allowed: a text, or a list of texts (got 5)"),
        ({"prompt": [[1, 2]]}, "prompt", "prompt.0: Input should be a valid string"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({}, "prompt", "prompt: Field required"),
        ({"prompt": "x", "temperature": 0.5}, "temperature", "allowed: 0 or nothing"),
        ({"prompt": "x", "presence_penalty": 1}, "presence_penalty", "allowed: 0 or nothing"),
        ({"prompt": "x", "n": 2}, "n", "allowed: 1 or nothing"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "greater than or equal to 1 (got 0)"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens", "should be a valid integer (got '5')"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens", "should be a valid integer (got True)"),
        ({"prompt": "x", "max_tokens": 21}, "max_tokens", "max_tokens: 21; allowed: 1 to 20"),
        ({"prompt": "x", "stop": list("abcde")}, "stop", "at most 4 items"),
        ({"prompt": "x", "logprobs": 3}, "logprobs", "logprobs: unknown field"),
        ({"prompt": "x", "raycl": {"task": "nobody"}}, "raycl", "raycl.task: 'nobody' is unknown"),
        ({"prompt": "x", "raycl": {"tasks": "roget"}}, "raycl", "raycl.tasks: unknown field"),
        ({"prompt": list("abcde")}, "prompt", "prompt: 5 texts; allowed: up to 4"),
        ({"prompt": "x", "temperature": 1, "n": 3}, "temperature", "; n: allowed: 1"),
    ],
)
def test_what_is_not_taken_is_said(gated: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    """With the field, the value and what is allowed, all problems at once."""
    error = error_of(gated, 400, **body)
    assert error["param"] == param and message in error["message"]


def test_what_has_no_effect_is_taken(gated: TestClient) -> None:
    """What clients send with every request: greedy answers are the same with it."""
    plain = complete(gated)
    told = complete(
        gated, temperature=0, n=1, top_p=0.5, seed=3, user="me", frequency_penalty=0, presence_penalty=0.0, stream=False
    )
    assert told["choices"] == plain["choices"]
    nothing = complete(gated, logprobs=None, echo=False, best_of=1, logit_bias={}, suffix=None)
    assert nothing["choices"] == plain["choices"]


def test_a_prompt_that_is_too_long_is_refused(gated: TestClient, alone: Served) -> None:
    """Alone: without a task nobody said what of it may be cut."""
    text = "dull " * 60
    length = len(alone.tokenizer(text).input_ids)
    error = error_of(gated, 400, prompt=["x", text])
    assert error["message"] == f"prompt: {length} tokens; allowed: up to 48 tokens, the run's data.max_source_tokens"
    assert error["code"] == "context_length_exceeded"


def test_an_answer_has_to_fit_behind_its_prompt(trained: Trained, alone: Served) -> None:
    """Into the positions that the model has."""
    read = len(alone.tokenizer("Entry: oak").input_ids)
    with client_of(str(trained("gain_lora")), max_tokens=10_000) as client:
        most = alone.model.config.max_position_embeddings
        error = error_of(client, 400, prompt="Entry: oak", max_tokens=most - read + 1)
        assert error["message"].startswith(f"prompt: {read} tokens leave the model room for {most - read};")
        assert error["code"] == "context_length_exceeded"


def test_bodies_that_are_none(gated: TestClient) -> None:
    for body, status in ((b"{", 400), (b"\xff", 400), (b"[]", 400), (b"", 400), (b"x" * (4 * 2**20 + 1), 413)):
        found = gated.post("/v1/completions", content=body)
        assert found.status_code == status
        assert len(found.json()["error"]["message"]) < 500


def test_other_models_places_and_verbs(gated: TestClient) -> None:
    for model in ("nobody", f"{NAME}/roget", ""):
        error = error_of(gated, 404, prompt="x", model=model)
        assert error["code"] == "model_not_found" and error["param"] == "model" and NAME in error["message"]
    assert gated.get("/v1/nothing").json()["error"]["message"] == "/v1/nothing: is nothing here"
    assert gated.get("/v1/completions").status_code == 405
    assert "error" in gated.get("/v1/completions").json()
    assert gated.get("/docs").status_code == 404 and gated.get("/openapi.json").status_code == 404


def test_what_is_served_is_listed(gated: TestClient, trained: Trained) -> None:
    """A head by its folder's name; where the method must be told, a model for each task, which are different ones."""
    (model,) = gated.get("/v1/models").json()["data"]
    assert model["id"] == NAME and model["object"] == "model"
    assert model["raycl"]["method"] == "gain_lora" and model["raycl"]["tasks"] == ["roget", "snippets"]
    folder = str(trained("per_task"))
    with client_of(folder) as client:
        listed = client.get("/v1/models").json()["data"]
        names = [one["id"] for one in listed]
        assert names == ["per_task-llama/roget", "per_task-llama/snippets"]
        assert tuple(one["raycl"]["stage"] for one in listed) == find_head(folder).stages  # of each its own
        texts = {}
        for name in names:
            task = name.partition("/")[2]
            texts[task] = complete(client, model=name)["choices"][0]["text"]
            with load(folder, task=task) as served:
                assert texts[task] == served.generate(["Entry: oak"])[0].text
            named = complete(client, model="per_task-llama", raycl={"task": task})["choices"]
            assert named == complete(client, model=name, raycl={"task": task})["choices"]
        assert texts["roget"] != texts["snippets"]
        error = error_of(client, 400, prompt="x", model="per_task-llama")
        assert "must be told whose inputs come; allowed: per_task-llama/roget" in error["message"]
        error = error_of(client, 400, prompt="x", model=names[0], raycl={"task": "snippets"})
        assert "name one task" in error["message"]
        assert error_of(client, 404, prompt="x", model="per_task-llama/nobody")["code"] == "model_not_found"


def test_several_states_share_a_base_model(trained: Trained) -> None:
    """Each answers as it does alone, however they take turns; two of one name, and two base models, are refused."""
    folders = {name: str(trained(name)) for name in ("gain_lora", "inc_lora", "route_lora")}
    with client_of(list(folders.values())) as client:
        for name in (*folders, *folders):
            with load(folders[name]) as served:
                (answer,) = served.generate(["Entry: oak"])
            assert complete(client, model=f"{name}-llama")["choices"][0]["text"] == answer.text
    with pytest.raises(SpecError, match="second one of the name"):
        make_app([folders["gain_lora"], folders["gain_lora"]])
    with pytest.raises(SpecError, match="serve each by itself"):
        make_app([folders["gain_lora"], str(trained("gain_lora", "t5"))])


@pytest.fixture(scope="module")
def chatty(trained_chats: Trained) -> str:
    """A run on a model whose tokenizer has a chat template."""
    return str(trained_chats("inc_lora"))


def chat(client: TestClient, *messages: tuple[str, Any], **body: Any) -> Any:
    """The response to a chat."""
    turns = [{"role": role, "content": content} for role, content in messages]
    return client.post("/v1/chat/completions", json={"model": "inc_lora-llama", "messages": turns} | body)


def test_a_chat_is_put_into_the_tokenizers_template(chatty: str) -> None:
    """All messages, a text in parts too; the answer is a message, whole or as one event."""
    with client_of(chatty) as client, load(chatty) as served:
        turns = [("system", "Be short"), ("user", "a"), ("assistant", "b"), ("user", "Entry: oak")]
        written = "".join(f"[{role}]{text}</s>" for role, text in turns) + "[assistant]"
        (answer,) = served.generate([written], 6)
        found = chat(client, *turns, max_tokens=6).json()
        assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
        (choice,) = found["choices"]
        assert choice["message"] == {"role": "assistant", "content": answer.text}
        assert found["usage"]["prompt_tokens"] == len(served.tokenizer(written).input_ids)
        parts = [{"type": "text", "text": "Entry:"}, {"type": "text", "text": " oak"}]
        again = chat(client, *turns[:-1], ("user", parts), max_completion_tokens=6).json()
        assert again["choices"] == found["choices"]
        streamed = chat(client, *turns, max_tokens=6, stream=True).text.split("\n\n")
        chunk = json.loads(streamed[0].removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk" and chunk["choices"][0]["delta"] == choice["message"]
        default = chat(client, *turns).json()
        assert default["choices"][0]["message"]["content"] == served.generate([written])[0].text


def test_chats_that_are_none(chatty: str, gated: TestClient) -> None:
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with client_of(chatty) as client:
        for found, status, message in (
            (chat(client), 400, "messages: "),
            (chat(client, ("user", "a"), ("assistant", "b")), 400, "of the role assistant; allowed: user"),
            (chat(client, ("tool", "a"), ("user", "b")), 400, "messages.0.role: "),
            (chat(client, ("user", image)), 400, "allowed: a text, or parts of the type `text`"),
            (chat(client, ("user", "a " * 60)), 400, "tokens; allowed: up to 48 tokens"),
            (chat(client, ("user", "a" * 4000)), 400, "4000 characters; allowed: up to 48 tokens"),
            (chat(client, ("user", "a"), raycl={"task": "roget"}), 400, "raycl.task: puts a text"),
            (
                chat(client, ("user", "a"), max_completion_tokens=2000),
                400,
                "max_completion_tokens: 2000; allowed: 1 to",
            ),
        ):
            assert found.status_code == status and message in found.json()["error"]["message"], found.text
    turns = [{"role": "user", "content": "a"}]
    assert "has no chat template" in error_of(gated, 400, "chat/completions", messages=turns)["message"]


def test_an_encoder_decoder_answers(trained: Trained) -> None:
    folder = str(trained("gain_lora", "t5"))
    with client_of(folder) as client, load(folder) as served:
        (answer,) = served.generate(["Entry: oak"], 4)
        found = complete(client, model="gain_lora-t5", max_tokens=4)
        assert found["choices"][0]["text"] == answer.text
        assert found["usage"]["completion_tokens"] == answer.tokens <= 4


def test_a_token_is_asked_for(trained: Trained) -> None:
    """By all but what says how the server is."""
    with client_of(str(trained("gain_lora")), token="voilà") as client:
        body = {"model": NAME, "prompt": "x"}
        for given in (None, "Bearer ", "Bearer voil", "Basic voilà", "voilà"):
            headers = {} if given is None else {"Authorization": given.encode()}
            found = client.post("/v1/completions", json=body, headers=headers)
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
            assert found.headers["www-authenticate"] == "Bearer" and "voil" not in found.text
            assert client.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer voilà".encode()}
        assert client.post("/v1/completions", json=body, headers=right).status_code == 200
        assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 200


def test_bounds_are_checked(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="max_batch: 0; allowed: 1 or more"), client_of("x", max_batch=0):
        pass
    with pytest.raises(SpecError, match="token: is empty"), client_of("x", token=""):
        pass
    with pytest.raises(SpecError, match="no run and no stage"):
        make_app(str(tmp_path))
