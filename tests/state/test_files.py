"""Files of a store: written durably, and never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import StoreError
from raycl.state.files import Files

USES: dict[str, Callable[[Files, str], Any]] = {
    "exists": lambda files, name: files.exists(name),
    "read": lambda files, name: files.read(name),
    "write": lambda files, name: files.write(name, b"new"),
    "create": lambda files, name: files.create(name, b"new"),
    "remove": lambda files, name: files.remove(name),
    "sizes": lambda files, name: files.sizes(name),
    "move from": lambda files, name: files.move(name, "other"),
    "move to": lambda files, name: files.move("other", name),
}


@pytest.mark.parametrize("write", ["write", "create"])
def test_a_file_is_on_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """The content is synced before the file gets its name, the folder that holds the name afterwards; nothing else is."""
    heard: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        heard.append("folder" if stat.S_ISDIR(found.st_mode) else f"file of {found.st_size} bytes")
        sync(descriptor)

    def named(real: Callable[..., None]) -> Callable[..., None]:
        return lambda *arguments: heard.append("name") or real(*arguments)

    monkeypatch.setattr(os, "fsync", fsync)
    for step in ("replace", "link"):
        monkeypatch.setattr(os, step, named(getattr(os, step)))
    USES[write](Files(str(tmp_path)), "room/file")
    assert heard == ["file of 3 bytes", "name", "folder"]
    assert (tmp_path / "room" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "room") == ["file"]


@pytest.mark.parametrize("link", ["room", "room/file"])
@pytest.mark.parametrize("use", USES)
def test_a_link_is_refused_whatever_is_done_with_it(tmp_path: Path, use: str, link: str) -> None:
    """The file's own name, or a folder above it: nothing is read, written or removed where the link leads."""
    target = tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    target.write_bytes(b"old")
    root = tmp_path / "store"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(target if link.endswith("file") else target.parent)
    with pytest.raises(StoreError, match="symbolic link"):
        USES[use](Files(str(root)), "room/file")
    assert target.read_bytes() == b"old" and (root / link).is_symlink()


def test_a_second_creation_changes_nothing(tmp_path: Path) -> None:
    """The first writer wins, and each is told."""
    files = Files(str(tmp_path))
    assert files.create("a/b", b"first") and not files.create("a/b", b"second")
    assert files.read("a/b") == b"first"
    files.write("a/b", b"third")
    assert files.read("a/b") == b"third" and files.names("a") == ["b"]


def test_what_moves_finds_its_folder_behind_a_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems make no folders by themselves."""
    files = Files("memory://moved")
    files.write("a/file", b"new")
    made: list[str] = []
    monkeypatch.setattr(files._fs, "makedirs", lambda path, exist_ok: made.append(path))  # pyright: ignore[reportPrivateUsage]
    files.move("a/file", "b/c/file")
    assert made == [files.path("b/c")] and files.read("b/c/file") == b"new"
