"""What `raycl serve` says, on standard error: its standard output stays empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text


def print_serving(url: str, heads: Mapping[str, tuple[str, Sequence[str]]], upstream: str | None = None) -> None:
    """That it answers: where, and of each head its method and tasks."""
    named = "; ".join(f"{name} ({method}: {', '.join(tasks)})" for name, (method, tasks) in heads.items())
    routed = f", answered by {upstream}" if upstream else ""
    _say(f"serving {named} at {url}/v1{routed}; Ctrl-C ends it")


def print_open_address(host: str) -> None:
    """That anybody who reaches the machine may ask."""
    _say(f"warning: --host {host} without --token-env: whoever reaches this machine may ask; give a token")


def print_served(requests: int) -> None:
    """That it has ended."""
    _say(f"ended; {requests} {'request was' if requests == 1 else 'requests were'} answered")


def _say(line: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(line))
