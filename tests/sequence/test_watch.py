"""What stands still is named and ended: in this process, and in a worker of Ray Train's, which is then started again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import LostError
from raycl.events import Event, Step
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.resolve import resolve
from raycl.sequence.watch import watch, woken
from raycl.state.store import Store
from tests.kit.runs import MakeFlags

AGES = 3600.0


def test_who_moves_on_is_left_alone() -> None:
    """Many times the patience, in small steps; and who has left is watched no more."""
    said: list[str] = []
    with watch(1.0, said.append) as beat:
        for _ in range(30):
            time.sleep(0.1)
            beat()
    time.sleep(1.5)
    assert said == []


def test_who_stands_still_is_named_once_with_the_place() -> None:
    said: list[str] = []
    told = threading.Event()

    def tell(words: str) -> None:
        said.append(words)
        told.set()

    with watch(0.2, tell):
        assert told.wait(60)
        time.sleep(0.5)
    assert len(said) == 1
    assert said[0].startswith("nothing has moved on for 0.2 s at ") and "(wait)" in said[0]


def test_no_patience_is_no_watch() -> None:
    said: list[str] = []
    with watch(0, said.append):
        time.sleep(0.5)
    assert said == []


def test_what_is_waited_for_is_interrupted() -> None:
    """A read that never ends, as from a disk that does not answer; without a watch Ctrl-C is what it is."""
    end, _ = os.pipe()
    said = r"stood still: nothing .* for 0.2 s at .*; all is kept; next step: .* train.patience"
    with pytest.raises(LostError, match=said), woken(0.2, lambda: "all is kept"):
        os.read(end, 1)
    with pytest.raises(KeyboardInterrupt), woken(AGES, lambda: ""):
        signal.raise_signal(signal.SIGINT)


def test_in_a_thread_nothing_is_watched() -> None:
    """None but the main thread can be woken up: a signal would interrupt that one, which waits here."""
    ended = threading.Event()

    def body() -> None:
        with woken(0.1, lambda: ""):
            time.sleep(1)
        ended.set()

    threading.Thread(target=body, daemon=True).start()
    assert ended.wait(60)


class Hangs:
    """A listener that never comes back from a step, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def handle(self, event: Event) -> None:
        """Hang."""
        if isinstance(event, Step) and event.step == self.step:
            self.step = 0
            time.sleep(AGES)


def test_a_run_that_hangs_is_ended_and_goes_on(flags: MakeFlags, tmp_path: Path) -> None:
    """With one message that names the place; the same command then ends it, with the bytes of an undisturbed run."""
    fields: dict[str, Any] = flags.spec("sin_lora", "llama") | {"order": "roget"}
    fields["train"] |= {"checkpoint_every": 1, "patience": 5}

    def run(name: str, listener: Hangs) -> Store:
        options = Options(str(tmp_path / name), "off", output=str(tmp_path / f"{name} out"))
        run_sequence(resolve("laptop", [fields]), options, [listener])
        return options.place()

    hangs = Hangs(3)
    with pytest.raises(LostError, match=r"moved on for 5 s at .*; 0 stages are in .* the same command goes on"):
        run("store", hangs)
    after, whole = run("store", hangs), run("whole", Hangs(0))
    (key,) = after.stage_keys()
    assert after.manifest(key).digest == whole.manifest(key).digest
