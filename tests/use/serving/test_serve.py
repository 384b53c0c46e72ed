"""`raycl serve` as a process: many requests at once get the texts of one by one, and it ends as it should."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from raycl import Serving, SetupError, SpecError, load
from raycl.use.serving.run import is_loopback, serve
from tests.kit.cli import invoke
from tests.kit.serving import ServeProcess, post, until
from tests.kit.trained import Trained

WORDS = ["oak", "wolf", "film", "dull", "fine", "entry", "text", "debate", "river", "not", "a", "of", "the", "star"]
TEXTS = [" ".join(WORDS[(place * 5 + i) % len(WORDS)] for i in range(1 + place % 11)) for place in range(32)]


@pytest.fixture
def process(trained: Trained, tmp_path: Path) -> Iterator[ServeProcess]:
    """Serves a gated and a routed method on one base model."""
    runs = [trained("gain_lora"), trained("route_lora")]
    arguments = [*runs, "--max-batch", 8, "--max-waiting", 64, "--token-env", "SERVE_TOKEN"]
    with ServeProcess.start(tmp_path, arguments, SERVE_TOKEN="secret", OMP_NUM_THREADS="1") as running:
        yield running


def test_many_at_once_are_answered_as_one_by_one(process: ServeProcess, trained: Trained) -> None:
    """32 requests at once over loopback, of texts of many lengths; then more are in work when it is told to end."""
    url = process.url()

    def ask(body: dict[str, Any]) -> tuple[int, Any]:
        return post(f"{url}/completions", body, "secret")

    with ThreadPoolExecutor(32) as pool:
        for method in ("gain_lora", "route_lora"):
            model = {"model": f"{method}-llama", "raycl": {"explain": True}}
            answers = list(pool.map(ask, [model | {"prompt": text} for text in TEXTS]))
            with load(str(trained(method))) as served:
                for text, (status, found) in zip(TEXTS, answers, strict=True):
                    (answer,) = served.generate([text])
                    assert status == 200
                    (choice,) = found["choices"]
                    assert choice["text"] == answer.text, text
                    assert (choice["raycl"]["route"] is None) == (method == "gain_lora")
        assert len({found["choices"][0]["text"] for _, found in answers}) > 10
        assert post(f"{url}/completions", {"model": "gain_lora-llama", "prompt": "x"})[0] == 401

        # Not together, since their limits differ; each takes hundreds of steps.
        with load(str(trained("route_lora"))) as served:
            written = {answer.tokens: text for text, answer in zip(TEXTS, served.generate(TEXTS, 600), strict=True)}
        longest = {"model": "route_lora-llama", "prompt": written[max(written)]}
        late = [pool.submit(tried, ask, longest | {"max_tokens": 600 + i}) for i in range(8)]
        until(lambda: waiting(url) >= 2)
        assert process.end(signal.SIGTERM) == 0
        taken = [one.result() for one in late].count(200)
    assert taken >= 3
    first, last = process.said.splitlines()
    assert first.startswith("serving gain_lora-llama (gain_lora: roget, snippets); route_lora-llama (route_lora: ")
    assert first.endswith("; Ctrl-C ends it") and url in first
    assert last == f"ended; {64 + taken} requests were answered"


def tried(ask: Callable[[Any], tuple[int, Any]], body: Any) -> int | None:
    """The status of a request; none where nobody listened any more."""
    try:
        return ask(body)[0]
    except ConnectionError:
        return None
    except URLError as error:
        assert isinstance(error.reason, ConnectionError)
        return None


def waiting(url: str) -> int:
    """Prompts that wait for their turn."""
    with urlopen(url.removesuffix("/v1") + "/ready") as found:
        return json.load(found)["waiting"]


@pytest.mark.slow
def test_ctrl_c_ends_it_too(process: ServeProcess) -> None:
    process.url()
    assert process.end(signal.SIGINT) == 0
    assert process.said.splitlines()[-1] == "ended; 0 requests were answered"


def test_what_cannot_be_served_ends_it(trained: Trained, tmp_path: Path) -> None:
    """A model that is not there, found while it loads; an address that is taken, or none."""
    folder = str(trained("gain_lora"))

    def ready(*arguments: Any) -> None:
        raise AssertionError("it is not ready")

    with pytest.raises(SpecError, match="nowhere"):
        serve([folder], Serving(model=str(tmp_path / "nowhere")), "127.0.0.1", 0, ready)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"--port {port}: cannot be had"):
            serve([folder], Serving(), "127.0.0.1", port, ready)
    with pytest.raises(SetupError, match=r"--host no\.such\.host\.invalid"):
        serve([folder], Serving(), "no.such.host.invalid", 0, ready)


def test_flags_are_checked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    monkeypatch.setenv("ODD_TOKEN", "two words\n")
    monkeypatch.setenv("FILE_TOKEN", "secret\n")
    for flags, message in (
        (["--token-env", "NO_SUCH_TOKEN"], "--token-env NO_SUCH_TOKEN: this environment variable is not set"),
        (["--token-env", "ODD_TOKEN"], "--token-env ODD_TOKEN: its value is no token"),
        (["--upstream-base", "x"], "are for --upstream; give that too"),
        (["--upstream", "http://127.0.0.1:1", "--upstream-adapter", "x"], "--upstream-adapter x: has no {task} in it"),
        (["--upstream", "http://127.0.0.1:1", "--upstream-token-env", "NO_SUCH_TOKEN"], "--upstream-token-env NO_SUCH"),
        ([], "no run and no stage of that name"),
        (["--token-env", "FILE_TOKEN"], "no run and no stage of that name"),
    ):
        answer = invoke("serve", [str(tmp_path / "none"), *flags])
        assert answer.code == 2 and message in answer.stderr
    assert "whoever reaches this machine may ask" in invoke("serve", ["none", "--host", "0.0.0.0"]).stderr
    help_text = invoke("serve", ["--help"])
    assert help_text.code == 0 and "127.0.0.1" in help_text.output


def test_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
