"""Whole files under one root, a local folder or an fsspec URI: written atomically, no link followed."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from raycl.errors import StoreError, has_password, shown

TEMPORARY = ".raycl-tmp-"
"""How the names of half-written local files start; a killed writer may leave one behind, and no reader looks at it."""


class Files:
    """Whole files by name relative to `root`, with `/` between folders.

    Every failure of the file system is a StoreError that names the full path.
    """

    def __init__(self, uri: str) -> None:
        """`uri` is a local folder (`~` is the home folder) or any URI fsspec has a backend for; nothing is touched."""
        if not uri or "\0" in uri:
            raise StoreError(f"{shown(uri)} is no place for a store: give a folder or a URI such as s3://bucket/folder")
        if has_password(uri):
            raise StoreError(
                "the URI of the store holds a password, and URIs are recorded and shown: give the password the way the "
                "file system's own client reads it (environment variable or configuration file)"
            )
        try:
            self._fs, self.root = url_to_fs(uri)
        except ImportError as error:
            raise StoreError(f"store {uri}: {error}. Install the package that serves this kind of URI") from error
        except ValueError as error:
            raise StoreError(f"store {uri}: {error}. Give a folder or a URI that fsspec knows") from error
        self._given = uri
        self.local = isinstance(self._fs, LocalFileSystem)
        # Remote backends raise their libraries' own exceptions, which share no base class.
        self._failures: type[Exception] = OSError if self.local else Exception

    def path(self, name: str = "") -> str:
        """Where a name is: an absolute local path, or the path inside the remote file system."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def uri(self, name: str = "") -> str:
        """Where a name is, for people and other programs: an absolute local path, or a full URI."""
        if self.local or not name:
            return self.path(name) if self.local else self._given
        return f"{self._given}{'' if self._given.endswith('/') else '/'}{name}"

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there now."""
        with self._named("look up", name):
            self._refuse_links(name)
            return self._there(name)

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self._named("read", name):
            self._refuse_links(name)
            return self._fs.cat_file(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted, without half-written files; empty if there is no such folder."""
        with self._named("list", folder):
            if not self._there(folder):
                return []
            found = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self.path(folder), detail=False)}
        return sorted(name for name in found if not name.startswith(TEMPORARY))

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file in a folder and those below it, by its name relative to the folder, with its bytes."""
        with self._named("list", folder):
            self._refuse_links(folder)
            if not self._there(folder):
                return {}
            start = len(self.path(folder).rstrip("/")) + 1
            found: dict[str, Any] = self._fs.find(self.path(folder), detail=True)
        return {path[start:]: int(facts.get("size") or 0) for path, facts in sorted(found.items())}

    def move(self, name: str, to: str) -> None:
        """Give a file another name; its folders are made."""
        with self._named("move", name):
            self._refuse_links(name)
            self._refuse_links(to)
            if self.local:
                make_folder(os.path.dirname(self.path(to)), shared(self.root))
                os.replace(self.path(name), self.path(to))
            else:
                self._fs.makedirs(self.path(to).rpartition("/")[0], exist_ok=True)
                self._fs.mv(self.path(name), self.path(to))

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one step: a reader sees the old file or the new one, never a part."""
        with self._named("write", name):
            self._refuse_links(name)
            if self.local:
                with _temporary(self.path(name), data, shared(self.root)) as temporary:
                    os.replace(temporary, self.path(name))
            else:
                self._put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file in one step unless it is there; says whether this call wrote it.

        Of several local writers exactly one succeeds. Object stores have no such promise through fsspec: there two
        writers within the same moment may both succeed, and the later one stays.
        """
        with self._named("create", name):
            self._refuse_links(name)
            if not self.local:
                if self._there(name):
                    return False
                self._put(name, data)
                return True
            with _temporary(self.path(name), data, shared(self.root)) as temporary:
                return _link_or_replace(temporary, self.path(name))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens if it is not there."""
        with self._named("remove", name):
            self._refuse_links(name)
            if self._there(name):
                self._fs.rm(self.path(name), recursive=True)

    def _put(self, name: str, data: bytes) -> None:
        # Object stores have no folders and ignore this; file servers need them.
        self._fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(self.path(name), data)

    def _there(self, name: str) -> bool:
        # Another process may have written it since this one last listed the folder.
        self._fs.invalidate_cache()
        try:
            # fsspec's own `exists` calls every failure, a lost network too, an absent file.
            self._fs.info(self.path(name))
        except FileNotFoundError:
            return False
        return True

    def _refuse_links(self, name: str) -> None:
        """A link below the root could lead a reader, or worse a writer, to files of somebody else."""
        if not self.local:
            return
        path = self.root
        for piece in filter(None, name.split("/")):
            path = os.path.join(path, piece)
            if os.path.islink(path):
                raise StoreError(f"{path} is a symbolic link; a store holds none. Put the real file or folder there")

    @contextmanager
    def _named(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.uri(name)} is missing. Restore it, or delete the folder it belongs to and run again"
            ) from error
        except self._failures as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise StoreError(
                f"cannot {action} {self.uri(name)}: {reason}. Check the path, its permissions and the free space"
            ) from error


def shared(root: str) -> bool:
    """Whether a group shares a store: its folder can be written by the group, as `chmod g+ws FOLDER` makes it."""
    try:
        return bool(os.stat(root).st_mode & stat.S_IWGRP)
    except OSError:
        return False


def make_folder(folder: str, of_group: bool) -> None:
    """Make a folder and those above it; where a group shares the store, whatever the user's mask, the group may write in
    those that are new."""
    if not of_group:
        os.makedirs(folder, exist_ok=True)
        return
    if os.path.isdir(folder):
        return
    make_folder(os.path.dirname(folder), of_group)
    with suppress(FileExistsError):
        os.mkdir(folder)
        os.chmod(folder, os.stat(folder).st_mode | stat.S_IRWXG)


@contextmanager
def _temporary(path: str, data: bytes, of_group: bool) -> Iterator[str]:
    """A file with `data`, safely on disk, in the folder of `path`; what then happens to `path` is made durable."""
    folder = os.path.dirname(path)
    make_folder(folder, of_group)
    temporary = os.path.join(folder, f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if of_group:
                os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode | stat.S_IRGRP | stat.S_IWGRP)
        yield temporary
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _link_or_replace(temporary: str, path: str) -> bool:
    try:
        # Unlike a rename, a hard link fails if the name is taken: the first of two writers wins.
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # Some network and FAT file systems have no hard links.
        os.replace(temporary, path)
    return True
