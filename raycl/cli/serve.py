"""`raycl serve`: finished states behind OpenAI's API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from raycl.cli.shared import StoreFlag, prepare
from raycl.cli.use import Device, Model
from raycl.errors import SpecError

Runs = Annotated[
    list[str],
    typer.Argument(help="runs, tags or stages' keys, as `raycl generate` takes them; several must share a base model"),
]
Host = Annotated[str, typer.Option("--host", help="address to listen on; by default only this machine reaches it")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 = a free one")]
TokenEnv = Annotated[
    str | None,
    typer.Option("--token-env", help="environment variable with the bearer token that requests must bring"),
]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, help="prompts that are answered together")]
MaxWaiting = Annotated[int, typer.Option("--max-waiting", min=1, help="prompts that wait; beyond it requests get 429")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="longest answer that may be asked for")]
UpstreamFlag = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        help="server of OpenAI's API that holds the adapters of route_lora by their tasks' names: raycl routes, it answers",
    ),
]
UpstreamTokenEnv = Annotated[
    str | None, typer.Option("--upstream-token-env", help="environment variable with the upstream's bearer token")
]
UpstreamBase = Annotated[
    str | None,
    typer.Option("--upstream-base", help="the upstream's name of the base model  (default: where the base model lies)"),
]
UpstreamAdapter = Annotated[
    str | None,
    typer.Option(
        "--upstream-adapter", help="the upstream's name of a task's adapter, with {task} in it  (default: {task})"
    ),
]


def serve(
    runs: Runs,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_env: TokenEnv = None,
    max_batch: MaxBatch = 16,
    max_waiting: MaxWaiting = 256,
    max_tokens: MaxTokens = 1024,
    upstream: UpstreamFlag = None,
    upstream_token_env: UpstreamTokenEnv = None,
    upstream_base: UpstreamBase = None,
    upstream_adapter: UpstreamAdapter = None,
    store: StoreFlag = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Answer over HTTP with what runs have learned, gates and routes in place, in the form of OpenAI's API.

    /v1/completions, /v1/chat/completions, /v1/models, /health and /ready; requests that wait are answered together. A
    SIGTERM or Ctrl-C ends it once what has come in is answered. docs/serving.md
    """
    if (upstream_token_env or upstream_base or upstream_adapter) and not upstream:
        raise SpecError(
            "--upstream-token-env, --upstream-base and --upstream-adapter: are for --upstream; give that too"
        )
    token = _secret("--token-env", token_env)
    upstream_token = _secret("--upstream-token-env", upstream_token_env)
    prepare()
    from raycl.report.serving import print_open_address, print_served, print_serving
    from raycl.use.serving.front import Front, Serving
    from raycl.use.serving.run import is_loopback
    from raycl.use.serving.run import serve as run
    from raycl.use.serving.upstream import Upstream

    elsewhere = Upstream(upstream, upstream_token, upstream_base, upstream_adapter or "{task}") if upstream else None
    serving = Serving(store, model, device, max_batch, max_waiting, max_tokens, token, elsewhere)

    def ready(front: Front, url: str) -> None:
        heads = {name: (head.spec.method.name, head.spec.tasks) for name, head in front.heads.items()}
        print_serving(url, heads, upstream)

    if token is None and not is_loopback(host):
        print_open_address(host)
    print_served(run(runs, serving, host, port, ready).answered)


def _secret(flag: str, variable: str | None) -> str | None:
    """The value of an environment variable, without the line end of a file that it may come from.

    Raises SpecError for one that is not set, and for what no header can hold.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SpecError(f"{flag} {variable}: this environment variable is not set; put the token into it")
    if not value.isprintable() or " " in value:
        raise SpecError(f"{flag} {variable}: its value is no token; allowed: printable text without spaces")
    return value
