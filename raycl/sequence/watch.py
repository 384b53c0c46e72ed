"""Names and ends what stands still: a worker in which nothing has moved on for too long."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from raycl.errors import LostError

GRACE_SECONDS = 30.0
"""How long a process that was woken up may take to end by itself."""
ROOT = f"{Path(__file__).parents[1]}/"
Beat = Callable[[], None]
"""Says that something has moved on."""


@contextmanager
def watch(patience: float, stands: Callable[[str], None]) -> Iterator[Beat]:
    """Watch the thread of the body, which calls what is given whenever it has moved on.

    After `patience` seconds without a call, `stands` is called once, in another thread, with how long and where it stands
    in words. 0 = never.
    """
    last, over, thread = [time.monotonic()], threading.Event(), threading.get_ident()

    def beat() -> None:
        last[0] = time.monotonic()

    def look() -> None:
        while (left := last[0] + patience - time.monotonic()) > 0:
            if over.wait(left):
                return
        stands(f"nothing has moved on for {patience:g} s{place(sys._current_frames().get(thread))}")

    if patience:
        threading.Thread(target=look, daemon=True).start()
    try:
        yield beat
    finally:
        over.set()


@contextmanager
def woken(patience: float, kept: Callable[[], str]) -> Iterator[Beat]:
    """As `watch`; what the body waits for is interrupted, and LostError says where it stood and what is `kept`.

    A process that does not wake up ends with exit code 2. Only the main thread of a process that Ctrl-C interrupts is
    watched: no other can be woken up.
    """
    stood: list[str] = []
    over = threading.Event()

    def wake(words: str) -> None:
        stood.append(words)
        signal.pthread_kill(thread, signal.SIGINT)
        if not over.wait(GRACE_SECONDS):
            print(f"error: {lost(words)}", file=sys.stderr, flush=True)
            os._exit(2)

    def lost(words: str) -> LostError:
        return LostError(
            f"the run stood still: {words}; {kept()}; next step: see what it waited for there (a disk, a network), then the "
            "same command goes on. train.patience says how long is too long"
        )

    thread = threading.get_ident()
    main = threading.current_thread() is threading.main_thread()
    able = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        with watch(patience if able else 0, wake) as beat:
            yield beat
    except KeyboardInterrupt:
        if stood:
            raise lost(stood[0]) from None
        raise
    finally:
        over.set()


def place(frame: FrameType | None) -> str:
    """Where a thread is, as ` at sequence/worker.py:12 (advance)`: the innermost line of raycl's; nothing if unknown."""
    lines = traceback.extract_stack(frame) if frame else []
    ours = [one for one in lines if one.filename.startswith(ROOT)] or lines[-1:]
    return f" at {ours[-1].filename.removeprefix(ROOT)}:{ours[-1].lineno} ({ours[-1].name})" if ours else ""
