"""The right to make a stage: one holder at a time, lost with the holder's life, no obstacle where there are no locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raycl.errors import StoreError
from raycl.state.lease import Lease
from raycl.state.store import Store

KEY = "ab" * 32
HOLDER = """
import sys, time
from raycl.state.lease import Lease
from raycl.state.store import Store
lease = Store(sys.argv[1]).lease(sys.argv[2])
print(lease.acquire(1), flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """A second one waits in vain until the first gives it back; other stages are free."""
    first, second = Store(str(tmp_path)).lease(KEY), Store(str(tmp_path)).lease(KEY)
    assert first.acquire(0)
    assert not second.acquire(0.2)
    assert Store(str(tmp_path)).lease("cd" * 32).acquire(0)
    first.release()
    assert second.acquire(0)
    second.release()


def test_a_killed_holder_loses_it(tmp_path: Path) -> None:
    """Another process holds it; once it is killed, waiting succeeds."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == "True"
        lease = Store(str(tmp_path)).lease(KEY)
        assert not lease.acquire(0.2)
        holder.kill()
        holder.wait()
        assert lease.acquire(10)
        lease.release()
    finally:
        holder.kill()
        holder.wait()


def test_a_store_without_locks_lets_everybody_go_ahead() -> None:
    """Behind a URI two processes may make the same stage; publishing settles it."""
    first, second = (Store("memory://leases").lease(KEY) for _ in range(2))
    assert first.acquire(0) and second.acquire(0)
    first.release()


def test_the_folder_of_the_locks_is_made(tmp_path: Path) -> None:
    """With all folders above it."""
    lease = Lease(tmp_path / "a" / "store" / "leases", KEY)
    assert lease.acquire(0)
    lease.release()


def test_only_a_key_names_a_lease(tmp_path: Path) -> None:
    """No other text becomes a file name."""
    with pytest.raises(StoreError):
        Store(str(tmp_path)).lease("../../elsewhere")


def made(folder: Path, asleep: float = 60.0) -> Lease:
    """A lease whose holder shows itself every 0.05 s; who waits takes over after `asleep` s."""
    return Lease(folder, KEY, 0.05, asleep)


def test_a_holder_that_is_awake_keeps_it(tmp_path: Path) -> None:
    """However long another one waits: the time of its file moves on."""
    first, second = made(tmp_path), made(tmp_path, asleep=0.5)
    assert first.acquire(0) and first.held
    assert not any(second.acquire(0.25) for _ in range(8))
    assert first.held and not second.held
    first.release()
    assert not first.held and second.acquire(0) and second.held
    second.release()


STOPPED = """
import sys, time
from pathlib import Path
from raycl.state.lease import Lease
lease = Lease(Path(sys.argv[1]), sys.argv[2], 0.05)
print(lease.acquire(1), flush=True)
sys.stdin.readline()
print(lease.held, flush=True)
lease.release()
"""


def test_a_stopped_holder_loses_it_and_knows_when_it_wakes_up(tmp_path: Path) -> None:
    """A SIGSTOP: after a while one of two that wait has it; the old one sees that, and harms nothing by giving it back."""
    holder = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path), KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == "True"
        os.kill(holder.pid, signal.SIGSTOP)
        waiting = [made(tmp_path, asleep=0.5), made(tmp_path, asleep=0.5)]
        while not any(one.acquire(0.1) for one in waiting):
            pass
        assert [one.held for one in waiting] in ([True, False], [False, True])
        assert not any(one.acquire(0.2) for one in waiting if not one.held)
        os.kill(holder.pid, signal.SIGCONT)
        said, _ = holder.communicate("\n", timeout=60)
        assert said.strip() == "False"
        assert sum(one.held for one in waiting) == 1
        for one in waiting:
            one.release()
        assert made(tmp_path).acquire(0)
    finally:
        holder.kill()
        holder.wait()


def test_without_locks_everybody_has_the_right() -> None:
    """A store behind a URI."""
    assert Lease(None, KEY).held
