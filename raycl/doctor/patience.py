"""Bounded waiting: a check of something that does not answer ends all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns, or raises. Raises TimeoutError after so many seconds; the call is then left to itself."""
    left: dict[str, Any] = {}

    def work() -> None:
        try:
            left["value"] = call()
        except BaseException as error:
            left["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if "error" in left:
        raise left["error"]
    return left["value"]
