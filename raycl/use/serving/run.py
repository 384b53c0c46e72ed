"""`raycl serve`: the application on an address of this machine, by uvicorn, until it is told to end."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence

import uvicorn

from raycl.errors import SetupError
from raycl.use.serving.app import app_of
from raycl.use.serving.front import Front, Serving


def serve(runs: Sequence[str], serving: Serving, host: str, port: int, ready: Callable[[Front, str], None]) -> Front:
    """Serve finished states until SIGTERM or Ctrl-C; then what has come in is answered, and this returns.

    `ready` hears once, in another thread, that the model answers, with the server's address; a port of 0 is one that is
    free. Raises UserError for runs that cannot be served and an address that cannot be had, and whatever breaks the model.
    """
    front = Front(runs, serving)
    with _listening(host, port) as listening:
        url = _address(listening)
        # Answers in flight are waited for without a limit: a second Ctrl-C ends the wait.
        config = uvicorn.Config(app_of(front), log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)

        def changed() -> None:
            if front.fault is not None:
                server.should_exit = True
            else:
                ready(front, url)

        front.changed = changed
        # Having ended as it was told to, uvicorn raises the signal anew.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    if front.fault is not None:
        raise front.fault
    return front


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises SetupError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise SetupError(
            f"--host {host} --port {port}: cannot be had ({error}); next step: give another port, or 0 for a free one"
        ) from None


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
