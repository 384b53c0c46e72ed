"""Every command of docs/serving.md and its Python, on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from tests.kit.commands import Commands
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags
from tests.kit.serving import ServeProcess, StandIn, until
from tests.kit.shell import Shell

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^    ((?:raycl|curl) .*)$", PAGE, re.MULTILINE)


class Page:
    """Runs the commands of the page: one server at a time, on a port that is free, and curl by the standard library."""

    def __init__(self, shell: Shell, upstream: str) -> None:
        self.shell, self.upstream = shell, upstream
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = str(found.getsockname()[1])
        self.servers = ExitStack()
        self.said: dict[str, Any] = {}
        """Command -> the JSON of its answer."""
        self.begun: list[str] = []
        """What the servers said first."""

    def run(self, line: str) -> None:
        """One command."""
        if line.startswith("raycl serve"):
            self.serve(line.removesuffix(" &").replace("http://127.0.0.1:8100", self.upstream))
        elif line.startswith("curl"):
            self.said[line] = self.curl(line)
        else:
            self.shell.run(line)

    def serve(self, line: str) -> None:
        """A server in the background, in the place of the one before."""
        self.servers.close()
        arguments = [*shlex.split(line)[2:], "--port", self.port]
        server = ServeProcess.start(self.shell.folder, arguments, **self.shell.environment)
        self.servers.enter_context(server)
        server.url()
        self.begun.append(server.said.splitlines()[0])

    def curl(self, line: str) -> Any:
        """What curl would get."""
        words = shlex.split(os.path.expandvars(line.replace(":8000/", f":{self.port}/")))
        assert words[:2] == ["curl", "-s"]
        url, *flags = words[2:]
        said = dict(zip(flags[::2], flags[1::2], strict=True))
        assert set(said) <= {"-d", "-H"}
        data = said["-d"].encode() if "-d" in said else None
        request = urllib.request.Request(url, data, dict([said["-H"].split(": ")]) if "-H" in said else {})
        with urllib.request.urlopen(request) as found:
            return json.load(found)


@pytest.fixture
def page(flags: MakeFlags, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """In an empty folder; the upstream says which adapter was asked."""
    fields = {name: value for name, value in flags.spec("sin_lora", "llama").items() if name != "method"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.setenv("RAYCL_TOKEN", "secret")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAYCL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    small = ["--preset", "laptop", "--config", str(tmp_path / "small.yaml")]
    shell = Shell(tmp_path, environment, small, commands)
    with StandIn(lambda path, body: (200, {"choices": [{"text": f"by {body['model']}"}]})) as upstream:
        one = Page(shell, upstream.url)
        with one.servers:
            yield one


def test_every_command_of_the_page(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in COMMANDS:
        page.run(line)
    models, one, several, ready, with_token, routed = page.said.values()
    assert [model["id"] for model in models["data"]] == ["demo-run"] == [model["id"] for model in with_token["data"]]
    assert len(one["choices"]) == 1 and one["usage"]["completion_tokens"] <= 8
    assert [set(choice["raycl"]["branches"]) >= {"roget", "snippets"} for choice in several["choices"]] == [True] * 2
    assert ready == {"status": "ready", "waiting": 0}
    (choice,) = routed["choices"]
    assert choice["text"] == f"by {choice['raycl']['route']['task']}"
    assert all(line.startswith("serving ") for line in page.begun)
    assert [line.partition(" at ")[2].split(":")[1] for line in page.begun] == [
        "//127.0.0.1",
        "//0.0.0.0",
        "//127.0.0.1",
    ]
    assert page.begun[-1].endswith(f", answered by {page.upstream}; Ctrl-C ends it")

    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(import raycl\n\napp = .*?)```", PAGE, re.DOTALL)
    exec(compile(code, "serving.md", "exec"), scope)
    with TestClient(scope["app"]) as client:
        until(lambda: client.get("/ready").status_code == 200)
        body = {"model": "demo-run", "prompt": "Entry: oak", "max_tokens": 8}
        assert client.post("/v1/completions", json=body).json()["choices"] == one["choices"]
        assert client.post("/v1/completions", json=body | {"max_tokens": 65}).status_code == 400
