"""The right to make a stage: one holder at a time, lost with the holder's life, no obstacle where there are no locks."""

from __future__ import annotations

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
