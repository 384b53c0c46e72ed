"""Small disks of their own, where the tests may mount some."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """An empty file system in memory of that size at `place`; skips the test where none may be mounted."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    done = subprocess.run(["mount", *options], capture_output=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("no file system may be mounted here; tests/state/test_state_crashes.py has writers that fail")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(disk: Path, left: int = 0) -> Path:
    """Fill a disk with one file, but for so many bytes; the file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    os.truncate(filler, max(0, filler.stat().st_size - left))
    return filler


def make_read_only(disk: Path) -> None:
    """From now on nothing can be written on it."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
